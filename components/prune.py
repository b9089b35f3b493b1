"""Remove weights or channels, then train again what is left."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def prune(
    options: dict,  # type: ignore[type-arg]
    seed: int,
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Remove weights or channels, then train again what is left.

    Args:
        options: The recipe's prune pass.
        seed: Of new weights and of the order of the rows.
        parent: Model folder of the pass before.
        dataset: Prepared data.

    Returns:
        model: Model folder.
        metrics: Accuracy on the validation split.
    """
    from components.artifacts import candidate_step, describe

    with candidate_step(model, metrics) as checkpoint:
        from pathlib import Path

        from mlites.compression.steps import prune
        from mlites.data.dataset import Dataset
        from mlites.recipe import Prune

        settings, data = Prune.model_validate(options), Dataset.load(Path(dataset.path))
        card = prune(Path(parent.path), data, settings, seed, Path(model.path), checkpoint)
        describe(card, model, metrics)
