"""Replace layers by cheaper ones that compute nearly the same, then fine-tune."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def factorize(
    options: dict,  # type: ignore[type-arg]
    seed: int,
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Replace layers by cheaper ones that compute nearly the same, then fine-tune.

    Args:
        options: The recipe's factorize pass.
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

        from mlites.compression.steps import factorize
        from mlites.data.dataset import Dataset
        from mlites.recipe import Factorize

        settings, data = Factorize.model_validate(options), Dataset.load(Path(dataset.path))
        card = factorize(Path(parent.path), data, settings, seed, Path(model.path), checkpoint)
        describe(card, model, metrics)
