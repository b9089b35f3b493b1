"""Train a smaller student on the soft targets of the model before it."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def distill(
    options: dict,  # type: ignore[type-arg]
    seed: int,
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train a smaller student on the soft targets of the model before it.

    Args:
        options: The recipe's distill pass.
        seed: Of new weights and of the order of the rows.
        parent: Model folder of the pass before.
        dataset: Prepared data.

    Returns:
        model: Model folder.
        metrics: Accuracy on the validation split.
    """
    from mlites.task import task

    with task() as checkpoint:
        from pathlib import Path

        from components.artifacts import describe
        from mlites.compression.steps import distill
        from mlites.data.dataset import Dataset
        from mlites.recipe import Distill

        settings, data = Distill.model_validate(options), Dataset.load(Path(dataset.path))
        card = distill(Path(parent.path), data, settings, seed, Path(model.path), checkpoint)
        describe(card, model, metrics)
