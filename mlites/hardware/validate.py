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
from mlites.hardware.budget import decided_by
from mlites.hardware.caveats import find_caveats
from mlites.hardware.figures import describe_latency, describe_machine, explain, measure_alone
from mlites.hardware.latency import Latency, measure_latency
from mlites.hardware.load import watch
from mlites.hardware.machine import read_machine
from mlites.hardware.macs import count_macs
from mlites.hardware.roofline import measure_peaks
from mlites.inference import check_file
from mlites.models.card import ModelCard, read_card
from mlites.packing.pack import packed_size
from mlites.recipe import Budget, Hardware

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
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Measure accuracy, speed, size, memory, energy and cost of a candidate and of the teacher.

    Args:
        candidate: model folder with ``model.onnx``.
        baseline: the same of the FP32 teacher.
        dataset: its test split decides and lends the rows that are timed.
        hardware: the profile to measure by; what this machine lacks of it is marked.
        name: the candidate's.
        passes: what was done to it, in words.
        source: model folder with the FP32 ``model.onnx`` that stood before quantization in the candidate's chain; the
            candidate's own folder, or none, where nothing was quantized.
        budget: its lines on latency and speed are measured until they can be decided, or time is up.

    Returns:
        The verdict document (``mlites-verdict/2``); its ``warnings`` name what did not do what it is for.

    Raises:
        InputError: a model that cannot be used or does not fit the data, or a provider that is not there.
    """
    machine = read_machine()
    folders = (baseline, candidate)
    cards = [_check_card(folder, dataset) for folder in folders]
    _check_preprocessing(candidate, cards[1], cards[0])
    inputs, labels = dataset.normalised_for(cards[0].preprocessing).arrays("test")
    rows = np.resize(inputs, (hardware.batch, *inputs.shape[1:]))
    with watch() as load:
        # a file that crashes ONNX Runtime crashes a process of its own; the teacher need not fit the target
        check_file(baseline / "model.onnx", rows)
        check_file(candidate / "model.onnx", rows, memory_mib=hardware.memory_mib)
        third, place = _find_source(source, cards, dataset)
        models = [folder / "model.onnx" for folder in folders]
        classes = len(dataset.classes)
        answers = [evaluate(path, inputs, labels, hardware, classes=classes) for path in models]
        running = [measure_alone(path, rows, hardware) for path in models]
        costs = [_cost(path, card, rows[:1]) for path, card in zip(models, cards, strict=True)]
        latencies = _measure([*models, *third], rows, hardware, budget)
        peaks = measure_peaks(hardware.threads) if hardware.provider == "cpu" else None
        limits = [
            explain(path, rows, latency, hardware, peaks) for path, latency in zip(models, latencies[:2], strict=True)
        ]
    teacher, own = (
        {**_figures(answer, latency), **alone, **cost, **limit}
        for answer, latency, alone, cost, limit in zip(answers, latencies[:2], running, costs, limits, strict=True)
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
        "classes": list(dataset.classes),
        "machine": describe_machine(machine, hardware, load, peaks),
        "baseline": {"name": BASELINE, "model": cards[0].digest, **teacher},
        **own,
        **_compare(answers[1], answers[0]),
        "speedup": latencies[1].speedup,
        "speedup_interval": list(latencies[1].speedup_interval),
        "speedup_narrow": latencies[1].narrow,
        "speedup_over_source": over_source,
        "speedup_over_source_interval": None if interval is None else list(interval),
        "size_ratio": teacher["size_bytes"] / own["size_bytes"],
        "rounds": latencies[1].rounds,
        "measured_seconds": latencies[1].seconds,
    }
    return {**verdict, "warnings": find_caveats(verdict, dataset.rows["validation"])}


def headline_figures(verdict: dict[str, Any]) -> dict[str, float]:
    """The figures of a verdict that one compares runs by, those that are known."""
    found = {key: verdict[key] for key in ("accuracy", "accuracy_drop_points", "ece", "speedup", "size_ratio")}
    found |= {f"{name}_ms": value for name, value in verdict["latency_ms"].items()}
    found |= {"size_bytes": verdict["size_bytes"], "peak_memory_bytes": verdict["peak_memory_bytes"]}
    found["cold_start_ms"] = sum(verdict["cold_start_ms"].values())
    found["energy_mj"] = (verdict.get("energy") or {}).get("millijoules")
    return {key: float(value) for key, value in found.items() if value is not None}


def _check_card(folder: Path, dataset: Dataset) -> ModelCard:
    card = read_card(folder)
    if card.form != "onnx":
        raise InputError(f"{folder / 'model.json'}: form is {card.form}; validation needs an exported model.onnx")
    if card.classes != dataset.classes:
        raise InputError(
            f"{folder / 'model.json'}: classes are {_shorten(card.classes)}; "
            f"the data has {_shorten(dataset.classes)}, in this order"
        )
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
    card = _check_card(source, dataset)
    _check_preprocessing(source, card, cards[0])
    if card.files == cards[1].files:
        return [], None
    if card.files == cards[0].files:
        return [], 0
    check_file(source / "model.onnx")
    return [source / "model.onnx"], 2


def share_time(models: int, seconds: float) -> float:
    """Seconds for each model: a third takes most of its time from the other two's.

    >>> share_time(2, 1.5), share_time(3, 1.5)
    (1.5, 1.3333333333333333)
    """
    return seconds * min(1.0, 2 * LONGER / models)


def _measure(
    models: Sequence[Path], rows: NDArray[np.float32], hardware: Hardware, budget: Budget | None
) -> list[Latency]:
    """All in the same rounds."""
    shared = hardware.model_copy(update={"seconds": share_time(len(models), hardware.seconds)})
    return measure_latency(models, rows, shared, decided=decided_by(budget) if budget else None)


def _compare(own: Answers, teacher: Answers) -> dict[str, Any]:
    """Losses row by row against the teacher."""
    return {
        "accuracy_drop_points": 100 * (teacher.accuracy - own.accuracy),
        "accuracy_drop_interval": list(drop(own, teacher).interval),
        "class_drops": [one and one.to_json() for one in class_drops(own, teacher)],
        "agreement": agreement(own.logits, teacher.logits),
    }


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
        **describe_latency(latency),
    }
