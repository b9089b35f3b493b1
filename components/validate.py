"""Measure a candidate against the teacher on the target hardware."""

from typing import List

from kfp import dsl

from components.images import VALIDATE


@dsl.component(base_image=VALIDATE, install_kfp_package=False)
def validate(
    name: str,
    passes: List[str],
    hardware: dict,  # type: ignore[type-arg]
    budget: dict,  # type: ignore[type-arg]
    store: str,
    candidate: dsl.Input[dsl.Model],
    baseline: dsl.Input[dsl.Model],
    source: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Measure a candidate against the teacher on the target hardware, interleaved.

    Args:
        name: The candidate's.
        passes: What was done to it, in words.
        hardware: The recipe's hardware section.
        budget: The recipe's budget section: lines on latency are measured until they can be decided.
        store: s3:// address that takes the model and the verdict.
        candidate: Model folder with model.onnx.
        baseline: Model folder of the FP32 teacher with model.onnx.
        source: Model folder of the candidate before quantization with model.onnx; itself where it is not quantized.
        dataset: Prepared data; its test split decides.

    Returns:
        Digest of the verdict document.
        metrics: Accuracy, speed, size, memory and energy; where the candidate failed, why.
    """
    from mlites.task import record_failure, task, tell

    with task():
        from pathlib import Path

        from mlites.data.dataset import Dataset
        from mlites.errors import InputError, ParityError
        from mlites.files import write_atomically
        from mlites.hardware.failed import failed_verdict
        from mlites.hardware.validate import headline_figures, validate
        from mlites.recipe import Budget, Hardware
        from mlites.storage import Store

        profile, data = Hardware.model_validate(hardware), Dataset.load(Path(dataset.path))
        folders = Path(candidate.path), Path(baseline.path)
        target = Store.open(store)
        write_atomically(Path(metrics.path), "{}")  # the local cache wants a file behind every artifact
        try:
            limits = Budget.model_validate(budget)
            verdict = validate(*folders, data, profile, name, list(passes), Path(source.path), limits)
        except (InputError, ParityError) as fault:  # this candidate's; the store's would end the run
            failure = record_failure(fault, f"validate {name}")
            metrics.metadata["failed"] = str(failure)
            digest = target.put_document(failed_verdict(name, passes, failure))
            tell(verdict=digest)
            return digest
        for line in [*verdict["machine"]["warnings"], *verdict["warnings"]]:
            print(f"mind: {line}")
        for key, value in headline_figures(verdict).items():
            metrics.log_metric(key, value)
        target.put_folder(f"models/{verdict['model']}", Path(candidate.path))
        digest = target.put_document(verdict)
        tell(verdict=digest)
        return digest
