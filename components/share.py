"""Give the weights of each layer a few shared values, then train these."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def share(
    options: dict,  # type: ignore[type-arg]
    seed: int,
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Give the weights of each layer a few shared values, then train these.

    Args:
        options: The recipe's share pass.
        seed: Of the order of the rows.
        parent: Model folder of the pass before.
        dataset: Prepared data.

    Returns:
        model: Model folder.
        metrics: Accuracy on the validation split.
    """
    from components.artifacts import candidate_step, describe

    with candidate_step(model, metrics) as checkpoint:
        from pathlib import Path

        from mlites.compression.steps import share
        from mlites.data.dataset import Dataset
        from mlites.recipe import Share

        settings, data = Share.model_validate(options), Dataset.load(Path(dataset.path))
        card = share(Path(parent.path), data, settings, seed, Path(model.path), checkpoint)
        describe(card, model, metrics)
