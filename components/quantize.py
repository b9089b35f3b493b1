"""Quantize an ONNX model."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def quantize(
    options: dict,  # type: ignore[type-arg]
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Quantize an ONNX model.

    Args:
        options: The recipe's quantize pass.
        parent: Model folder with an FP32 model.onnx.
        dataset: Prepared data, which calibrates.

    Returns:
        model: Model folder with the quantized model.onnx.
        metrics: Accuracy on the validation split.
    """
    from components.artifacts import candidate_step, describe

    with candidate_step(model, metrics):
        from pathlib import Path

        from mlites.compression.steps import quantize
        from mlites.data.dataset import Dataset
        from mlites.recipe import Quantize

        settings, data = Quantize.model_validate(options), Dataset.load(Path(dataset.path))
        card = quantize(Path(parent.path), data, settings, Path(model.path))
        describe(card, model, metrics)
