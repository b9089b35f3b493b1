"""Train with the rounding of INT8, and export."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def qat(
    options: dict,  # type: ignore[type-arg]
    seed: int,
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train with the rounding of INT8, and export.

    Args:
        options: The recipe's qat pass.
        seed: Of the order of the rows.
        parent: Model folder of the pass before.
        dataset: Prepared data.

    Returns:
        model: Model folder with the INT8 model.onnx.
        metrics: Accuracy on the validation split.
    """
    from components.artifacts import candidate_step, describe

    with candidate_step(model, metrics) as checkpoint:
        from pathlib import Path

        from mlites.compression.steps import qat
        from mlites.data.dataset import Dataset
        from mlites.recipe import QAT

        settings, data = QAT.model_validate(options), Dataset.load(Path(dataset.path))
        card = qat(Path(parent.path), data, settings, seed, Path(model.path), checkpoint)
        describe(card, model, metrics)
