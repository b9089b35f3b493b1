"""Any ONNX files measured side by side on this machine, also such as mlites did not make."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data

from mlites.data.dataset import Dataset
from mlites.data.sources.npz import read_rows
from mlites.errors import InputError
from mlites.hardware.accuracy import Answers, agreement
from mlites.hardware.figures import describe_latency, describe_machine, explain, measure_alone
from mlites.hardware.latency import Latency, measure_latency
from mlites.hardware.load import watch
from mlites.hardware.machine import read_machine
from mlites.hardware.macs import count_macs
from mlites.hardware.roofline import measure_peaks
from mlites.inference import Signature, check_file, choose_providers, infer, open_session, read_signature
from mlites.onnx_file import stored_tensors
from mlites.packing.pack import packed_size
from mlites.recipe import Hardware

FORMAT = "mlites-measure/1"
RANDOM_ROWS = 64

Document = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Rows to measure with.

    Attributes:
        inputs: as the models take them (n, ...).
        labels: index of each row's class (n,), None where it is not known.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None


def read_sample(path: Path) -> Sample:
    """The test rows of a prepared dataset, normalised with its own numbers, or an npz archive's ``x`` and ``y`` as is.

    Raises:
        InputError: it is neither.
    """
    if path.is_dir():
        return Sample(*Dataset.load(path).arrays("test"))
    if not path.is_file():
        raise InputError(f"{path}: no such file; data is an npz archive with x (and y), or a prepared dataset's folder")
    return Sample(*read_rows(path))


def measure(models: Sequence[Path], sample: Sample | None, hardware: Hardware) -> Document:
    """Measure ONNX files that take one float32 input.

    Args:
        models: the first that can be used is what speedups and agreement refer to.
        sample: rows; where None, normally distributed numbers of the shape that the first model states.
        hardware: how to measure.

    Returns:
        The document (``mlites-measure/1``). Of ``models`` each has its ``file``, and either an ``error`` in one line or
        its figures, under the names that they have in a verdict.

    Raises:
        InputError: this ONNX Runtime does not have the profile's provider.
    """
    choose_providers(hardware.provider, hardware.provider_options)
    machine = read_machine()
    peaks = measure_peaks(hardware.threads) if hardware.provider == "cpu" else None
    with watch() as load:
        given, entries = sample, []
        usable: list[tuple[_Model, Document]] = []
        for path in models:
            entry: Document = {"file": str(path)}
            entries.append(entry)
            try:
                model = _open(path, given, hardware)
                entry |= {**_of_file(model, hardware), **_judge(model, usable[0][0] if usable else model)}
            except InputError as error:
                entry["error"] = str(error)
            else:
                given = given or Sample(model.rows)
                usable.append((model, entry))
        if usable:
            latencies = measure_latency([model.path for model, _ in usable], usable[0][0].rows, hardware)
            for (model, entry), latency in zip(usable, latencies, strict=True):
                entry |= {**_figures(latency), **explain(model.path, model.rows, latency, hardware, peaks)}
    return {
        "format": FORMAT,
        "machine": describe_machine(machine, hardware, load, peaks),
        "rows": None if sample is None else len(sample.inputs),
        "baseline": str(usable[0][0].path) if usable else None,
        "models": entries,
    }


@dataclass(frozen=True)
class _Model:
    """A file that can be measured.

    Attributes:
        path: of the file.
        rows: to measure it with (n, ...).
        batch: rows that every inference takes; None if it takes any number.
        answers: to labelled rows; None where there are no labels, or the model answers with other than classes.
    """

    path: Path
    rows: NDArray[np.float32]
    batch: int | None
    answers: Answers | None


def _open(path: Path, sample: Sample | None, hardware: Hardware) -> _Model:
    """Refuse what cannot be measured, before it costs memory or time."""
    rows = None if sample is None else np.resize(sample.inputs, (hardware.batch, *sample.inputs.shape[1:]))
    check_file(path, rows, alone=False, memory_mib=hardware.memory_mib)
    session = open_session(path, hardware.threads, hardware.provider, hardware.provider_options)
    signature = read_signature(session, path)
    if signature.batch not in (None, hardware.batch):
        raise InputError(
            f"{path}: takes {signature.batch} rows at a time; measure it with a profile of batch {signature.batch}, "
            "or export it with an open batch"
        )
    stated = signature.input_shape[1:]
    if sample is None:
        sample = Sample(_random_rows(path, signature))
    own = sample.inputs.shape[1:]
    if signature.input_shape and not (len(stated) == len(own) and all(map(_fits, stated, own))):
        raise InputError(f"{path}: takes rows of shape {_show(stated)}; those to measure with have {_show(own)}")
    answers = None
    if sample.labels is not None and len(signature.output_shape) in (0, 2):
        answers = Answers(_as_logits(infer(session, path, sample.inputs)), sample.labels)
        if (classes := answers.logits.shape[1]) <= sample.labels.max():
            raise InputError(f"{path}: answers with {classes} classes; labels go up to {sample.labels.max()}")
    return _Model(path, sample.inputs, signature.batch, answers)


def _random_rows(path: Path, signature: Signature) -> NDArray[np.float32]:
    row = signature.input_shape[1:]
    if not row or None in row:
        raise InputError(f"{path}: does not state the shape of a row, {_show(row)}; give rows with --data")
    shape = [edge for edge in row if edge is not None]
    return np.random.default_rng(0).normal(size=(RANDOM_ROWS, *shape)).astype(np.float32)


def _fits(stated: int | None, size: int) -> bool:
    return stated is None or stated == size


def _show(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if edge is None else str(edge) for edge in shape)}]"


def _as_logits(answers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (n, classes) of a model that ends with softmax, whose answers are their probabilities."""
    if answers.min() >= 0 and np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(answers, np.finfo(np.float32).tiny))
    return answers


def _of_file(model: _Model, hardware: Hardware) -> Document:
    """What needs no other model beside it."""
    content, beside = model.path.read_bytes(), _bytes_beside(model.path)
    if model.batch is not None:
        hardware = hardware.model_copy(update={"batches": ()})
    return {
        "size_bytes": len(content) + beside,
        "download_bytes": packed_size(content) + beside,
        "macs": _count_macs(model),
        **measure_alone(model.path, model.rows, hardware),
    }


def _bytes_beside(path: Path) -> int:
    """Of the files that hold weights of a model."""
    tensors = stored_tensors(onnx.load(path, load_external_data=False))
    entries = [entry for one in tensors if uses_external_data(one) for entry in one.external_data]
    locations = {entry.value for entry in entries if entry.key == "location"}
    return sum((path.parent / location).stat().st_size for location in locations)


def _count_macs(model: _Model) -> int | None:
    """None where operators of another kind keep them from being counted."""
    try:
        return count_macs(onnx.load(model.path), model.rows[:1])
    except InputError:
        return None


def _judge(model: _Model, baseline: _Model) -> Document:
    """What the labels say."""
    if model.answers is None:
        return {"accuracy": None, "per_class": None, "ece": None, "agreement": None}
    return {
        "accuracy": model.answers.accuracy,
        "per_class": model.answers.per_class,
        "ece": model.answers.ece,
        "agreement": None if baseline.answers is None else agreement(model.answers.logits, baseline.answers.logits),
    }


def _figures(latency: Latency) -> Document:
    return {
        **describe_latency(latency),
        "speedup": latency.speedup,
        "speedup_interval": list(latency.speedup_interval),
        "speedup_narrow": latency.narrow,
        "measured_seconds": latency.seconds,
    }
