"""Turn a PyTorch model into ONNX."""

from kfp import dsl

from components.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def export(
    parent: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Turn a PyTorch model into ONNX, checked against it on real rows.

    Args:
        parent: Model folder with safetensors.
        dataset: Prepared data.

    Returns:
        model: Model folder with model.onnx.
        metrics: Largest difference between the two.
    """
    from components.artifacts import candidate_step, describe

    with candidate_step(model, metrics):
        from pathlib import Path

        from mlites.compression.steps import export
        from mlites.data.dataset import Dataset

        card = export(Path(parent.path), Dataset.load(Path(dataset.path)), Path(model.path))
        describe(card, model, metrics)
