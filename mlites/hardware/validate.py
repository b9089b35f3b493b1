"""The verdict: a candidate measured beside the FP32 ONNX Runtime teacher on this machine."""

from pathlib import Path
from typing import Any

from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.hardware.accuracy import Answers, agreement, evaluate
from mlites.hardware.latency import measure_latency
from mlites.hardware.machine import read_machine
from mlites.hardware.memory import measure_peak_memory
from mlites.inference import check_file
from mlites.models.card import ModelCard, read_card
from mlites.recipe import Hardware

FORMAT = "mlites-verdict/1"
BASELINE = "teacher"


def validate(
    candidate: Path, baseline: Path, dataset: Dataset, hardware: Hardware, name: str, passes: list[str]
) -> dict[str, Any]:
    """Measure accuracy, latency, size and memory of a candidate and of the teacher.

    Args:
        candidate: model folder with ``model.onnx``.
        baseline: the same of the FP32 teacher.
        dataset: its test split decides and lends the rows that are timed.
        hardware: threads, batch and time to measure with.
        name: the candidate's.
        passes: what was done to it, in words.

    Returns:
        The verdict document (``mlites-verdict/1``).

    Raises:
        InputError: a model that cannot be used or does not fit the data; more threads than cores.
    """
    machine = read_machine()
    if hardware.threads > machine.cores:
        raise InputError(
            f"hardware.threads is {hardware.threads}, but this process may use {machine.cores} cores; "
            "lower threads or measure on a larger machine"
        )
    folders = (baseline, candidate)
    cards = [_check_model(folder, dataset) for folder in folders]
    if cards[0].preprocessing != cards[1].preprocessing:
        place = candidate / "model.json"
        raise InputError(f"{place}: preprocessing differs from the baseline's; measure one against its own teacher")
    inputs, labels = dataset.normalised_for(cards[0].preprocessing).arrays("test")
    rows = inputs[: hardware.batch]
    models = [folder / "model.onnx" for folder in folders]
    # memory comes first: a file that crashes ONNX Runtime shall crash that process and not this one
    peaks = [measure_peak_memory(path, rows, threads=hardware.threads, batch=hardware.batch) for path in models]
    sizes = [path.stat().st_size for path in models]
    classes = len(dataset.classes)
    answers = [evaluate(path, inputs, labels, classes=classes, threads=hardware.threads) for path in models]
    latencies = measure_latency(models, rows, threads=hardware.threads, batch=hardware.batch, seconds=hardware.seconds)
    teacher, own = (
        _figures(answer, latency.percentiles_ms(), size, peak)
        for answer, latency, size, peak in zip(answers, latencies, sizes, peaks, strict=True)
    )
    return {
        "format": FORMAT,
        "candidate": name,
        "passes": list(passes),
        "model": cards[1].digest,
        "parents": list(cards[1].parents),
        "provenance": list(cards[1].provenance),
        "preprocessing": cards[1].preprocessing,
        "machine": {**machine.to_json(), "threads": hardware.threads, "batch": hardware.batch},
        "baseline": {"name": BASELINE, "model": cards[0].digest, **teacher},
        **own,
        "accuracy_drop_points": 100 * (teacher["accuracy"] - own["accuracy"]),
        "speedup": latencies[1].speedup,
        "speedup_interval": list(latencies[1].speedup_interval),
        "size_ratio": sizes[0] / sizes[1],
        "agreement": agreement(answers[1].logits, answers[0].logits),
        "rounds": latencies[1].rounds,
    }


def _check_model(folder: Path, dataset: Dataset) -> ModelCard:
    card = read_card(folder)
    if card.form != "onnx":
        raise InputError(f"{folder / 'model.json'}: form is {card.form}; validation needs an exported model.onnx")
    if card.classes != dataset.classes:
        raise InputError(
            f"{folder / 'model.json'}: classes are {_shorten(card.classes)}; "
            f"the data has {_shorten(dataset.classes)}, in this order"
        )
    check_file(folder / "model.onnx")
    return card


def _shorten(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5])
    return shown[:80] if len(classes) <= 5 else f"{shown[:80]}, ... ({len(classes)})"


def _figures(answers: Answers, latency_ms: dict[str, float], size: int, peak: int) -> dict[str, Any]:
    return {
        "accuracy": answers.accuracy,
        "latency_ms": latency_ms,
        "size_bytes": size,
        "peak_memory_bytes": peak,
        "confusion": answers.confusion.tolist(),
    }
