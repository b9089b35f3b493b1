"""The verdict: a candidate measured beside the FP32 ONNX Runtime teacher on this machine."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.hardware.accuracy import Answers, agreement, class_drops, drop, evaluate
from mlites.hardware.caveats import find_caveats
from mlites.hardware.latency import Latency, measure_latency
from mlites.hardware.machine import read_machine
from mlites.hardware.macs import count_macs
from mlites.hardware.memory import measure_process
from mlites.inference import check_file
from mlites.models.card import ModelCard, read_card
from mlites.packing.pack import packed_size
from mlites.recipe import Hardware

FORMAT = "mlites-verdict/2"
BASELINE = "teacher"
LONGER = 4 / 3  # what the third model may add to the time of two


def validate(
    candidate: Path,
    baseline: Path,
    dataset: Dataset,
    hardware: Hardware,
    name: str,
    passes: list[str],
    source: Path | None = None,
) -> dict[str, Any]:
    """Measure accuracy, latency, size, memory and cost of a candidate and of the teacher.

    Args:
        candidate: model folder with ``model.onnx``.
        baseline: the same of the FP32 teacher.
        dataset: its test split decides and lends the rows that are timed.
        hardware: threads, batch and time to measure with.
        name: the candidate's.
        passes: what was done to it, in words.
        source: model folder with the FP32 ``model.onnx`` that stood before quantization in the candidate's chain; the
            candidate's own folder, or none, where nothing was quantized.

    Returns:
        The verdict document (``mlites-verdict/2``); its ``warnings`` name what did not do what it is for.

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
    _check_preprocessing(candidate, cards[1], cards[0])
    third, place = _find_source(source, cards, dataset)
    inputs, labels = dataset.normalised_for(cards[0].preprocessing).arrays("test")
    rows = inputs[: hardware.batch]
    models = [folder / "model.onnx" for folder in folders]
    # memory comes first: a file that crashes ONNX Runtime shall crash that process and not this one
    peaks = [measure_process(path, rows, hardware).peak_memory_bytes for path in models]
    classes = len(dataset.classes)
    answers = [evaluate(path, inputs, labels, classes=classes, threads=hardware.threads) for path in models]
    costs = [_cost(path, card, rows[:1]) for path, card in zip(models, cards, strict=True)]
    latencies = _measure([*models, *third], rows, hardware)
    teacher, own = (
        {**_figures(answer, latency), "peak_memory_bytes": peak, **cost}
        for answer, latency, peak, cost in zip(answers, latencies[:2], peaks, costs, strict=True)
    )
    over_source, interval = (None, None) if place is None else latencies[1].speedup_over(latencies[place])
    verdict = {
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
        "classes": list(dataset.classes),
        "accuracy_drop_points": 100 * (teacher["accuracy"] - own["accuracy"]),
        "accuracy_drop_interval": list(drop(answers[1], answers[0]).interval),
        "class_drops": [one and one.to_json() for one in class_drops(answers[1], answers[0])],
        "speedup": latencies[1].speedup,
        "speedup_interval": list(latencies[1].speedup_interval),
        "speedup_over_source": over_source,
        "speedup_over_source_interval": None if interval is None else list(interval),
        "size_ratio": teacher["size_bytes"] / own["size_bytes"],
        "agreement": agreement(answers[1].logits, answers[0].logits),
        "rounds": latencies[1].rounds,
    }
    return {**verdict, "warnings": find_caveats(verdict, dataset.rows["validation"])}


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


def _check_preprocessing(folder: Path, card: ModelCard, baseline: ModelCard) -> None:
    if card.preprocessing != baseline.preprocessing:
        place = folder / "model.json"
        raise InputError(f"{place}: preprocessing differs from the baseline's; measure one against its own teacher")


def _find_source(source: Path | None, cards: Sequence[ModelCard], dataset: Dataset) -> tuple[list[Path], int | None]:
    """The file to time beside baseline and candidate, if it is neither, and the source's place among all three."""
    if source is None:
        return [], None
    card = _check_model(source, dataset)
    _check_preprocessing(source, card, cards[0])
    if card.files == cards[1].files:
        return [], None
    return ([], 0) if card.files == cards[0].files else ([source / "model.onnx"], 2)


def share_time(models: int, seconds: float) -> float:
    """Seconds for each model: a third takes most of its time from the other two's.

    >>> share_time(2, 1.5), share_time(3, 1.5)
    (1.5, 1.3333333333333333)
    """
    return seconds * min(1.0, 2 * LONGER / models)


def _measure(models: Sequence[Path], rows: NDArray[np.float32], hardware: Hardware) -> list[Latency]:
    """All in the same rounds."""
    seconds = share_time(len(models), hardware.seconds)
    return measure_latency(models, rows, hardware.model_copy(update={"seconds": seconds}))


def _cost(model: Path, card: ModelCard, row: NDArray[np.float32]) -> dict[str, int | None]:
    """Size as it is and packed, multiply-accumulates, and the parameters that the last PyTorch step counted."""
    content = model.read_bytes()
    facts = [entry.get("metrics") for entry in card.provenance]
    counts = [one.get("parameters") for one in facts if isinstance(one, dict)]
    return {
        "size_bytes": len(content),
        "download_bytes": packed_size(content),
        "parameters": next((count for count in reversed(counts) if isinstance(count, int)), None),
        "macs": count_macs(onnx.load_from_string(content), row),
    }


def _figures(answers: Answers, latency: Latency) -> dict[str, Any]:
    return {
        "accuracy": answers.accuracy,
        "per_class": answers.per_class,
        "ece": answers.ece,
        "calibration": [asdict(one) for one in answers.calibration],
        "confusion": answers.confusion.tolist(),
        "latency_ms": latency.percentiles_ms(),
    }
