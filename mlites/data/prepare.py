"""From a recipe's data section to a validated dataset folder, its quality page and its data document."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.dataset import SPLITS, TASKS, Inputs, Preprocessing, write_dataset
from mlites.data.expectations import Check, Findings, validate
from mlites.data.profile import Columns, make_profile, read_profile, watched_columns, write_profile
from mlites.data.quality import render_quality
from mlites.data.raw import RawData
from mlites.data.sources import READERS, digits
from mlites.data.splits import Splits, split
from mlites.errors import InputError
from mlites.files import digest_file, digest_folder, digest_json, new_folder, write_atomically
from mlites.recipe import Data

FORMAT = "mlites-data-document/1"
PIECE = 4096  # rows in float64 at a time


def prepare(
    data: Data, task: str | None, seed: int, path: Path | None, folder: Path, quality_html: Path, reference: Path | None
) -> dict[str, Any]:
    """Read, split, validate and write a dataset; the same input and seed give the same bytes.

    Args:
        data: the recipe's section; its path and reference are not followed, since they may be on S3.
        task: what the recipe demands; None takes what the source holds.
        seed: chooses splits and subsample.
        path: local copy of the source; None for digits.
        folder: where the dataset appears, whole or not at all.
        quality_html: where the page of checks goes, even if a critical one fails.
        reference: local profile.json to compare with.

    Returns:
        The data document: digest, rows, class counts and every check.

    Raises:
        InputError: the source is wrong, or breaks a critical expectation.
    """
    try:
        return _prepare(data, task, seed, path, folder, quality_html, reference)
    except InputError as error:
        if path is None or data.path is None:
            raise
        raise InputError(str(error).replace(str(path), data.path)) from None  # a copy's name tells the user nothing


def _prepare(
    data: Data, task: str | None, seed: int, path: Path | None, folder: Path, quality_html: Path, reference: Path | None
) -> dict[str, Any]:
    place = data.path or data.source
    profile = read_profile(reference) if reference else None
    if path is not None:
        _check_readable(path, data)
    raw = READERS[data.source](path, data)
    task = _decide_task(task, raw, place)
    splits = split(raw, validation=data.validation, test=data.test, limit=data.limit, seed=seed, place=place)
    columns, names = _all_rows(raw, splits)
    findings = validate(raw, splits, columns, names, profile)
    document = _describe(data, task, raw, splits, findings)
    write_atomically(quality_html, render_quality(document, raw, splits, columns, findings, place))
    failed = [check for check in findings.checks if check.critical and not check.success]
    if failed:
        raise InputError(_explain(failed, place, quality_html))
    with new_folder(folder) as work:
        class_rows = {name: sum(counts[name] for counts in document["class_counts"].values()) for name in raw.classes}
        write_profile(make_profile(raw.inputs.shape[1:], columns, class_rows), work / "profile.json")
        dataset = write_dataset(
            work,
            task=task,
            source=data.source,
            classes=raw.classes,
            preprocessing=fit_preprocessing(splits.parts["train"][0], raw.scale),
            splits=splits.parts,
            extra=("profile.json",),
        )
    return {**document, "digest": dataset.digest}


def source_digest(data: Data) -> str:
    """SHA-256 of what a local source holds, from its files alone; a cache key for what is prepared from it.

    Raises:
        InputError: it is missing or cannot be read.
    """
    if data.source == "digits":
        return digits.digest()
    local = Path(data.path or "")
    _check_readable(local, data)
    try:
        return digest_folder(local) if local.is_dir() else digest_json({"file": digest_file(local)})
    except OSError as error:
        raise InputError(f"{error.filename or local}: cannot read: {error.strerror}") from None


def fit_preprocessing(inputs: Inputs, scale: float) -> Preprocessing:
    """Mean and standard deviation of each channel or feature.

    Args:
        inputs: training rows (n, channels, height, width) or (n, features).
        scale: what raw values are multiplied by first.
    """
    axes = tuple(axis for axis in range(inputs.ndim) if axis != 1)
    count = inputs.size / inputs.shape[1]
    mean = _total(inputs, axes, lambda piece: piece) / count
    across = mean.reshape((1, -1) + (1,) * (inputs.ndim - 2))
    std = np.sqrt(_total(inputs, axes, lambda piece: (piece - across) ** 2) / count)
    constant = std <= np.maximum(np.abs(mean) * 1e-7, 1e-30)  # float32 could not tell such a spread from rounding
    std = np.where(constant, 1 / scale, std)
    return Preprocessing(scale, tuple(map(float, mean * scale)), tuple(map(float, std * scale)))


def _total(inputs: Inputs, axes: tuple[int, ...], function: Any) -> NDArray[np.float64]:
    total = np.zeros(inputs.shape[1])
    for start in range(0, len(inputs), PIECE):
        total += function(inputs[start : start + PIECE].astype(np.float64)).sum(axis=axes)
    return total


def _check_readable(path: Path, data: Data) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(path.iterdir(), None)
        elif stat.S_ISREG(mode):
            path.open("rb").close()
        else:  # reading a pipe or a device might never end
            raise InputError(f"{path}: neither a file nor a folder; source {data.source} needs one")
    except OSError as error:
        raise InputError(f"{path}: cannot read the data of source {data.source}: {error.strerror}") from None


def _decide_task(task: str | None, raw: RawData, place: str) -> str:
    fitting = next(name for name, dimensions in TASKS.items() if dimensions == raw.inputs.ndim - 1)
    if task not in (None, fitting):
        kind = "images" if raw.inputs.ndim == 4 else "a table"
        raise InputError(f"{place}: holds {kind}, which is task {fitting}, but the recipe says {task}")
    return fitting


def _all_rows(raw: RawData, splits: Splits) -> tuple[Columns, list[str]]:
    """Watched columns and class names of all splits, one after the other."""
    inputs = np.concatenate([splits.parts[name][0] for name in SPLITS])
    labels = np.concatenate([splits.parts[name][1] for name in SPLITS])
    return watched_columns(inputs, raw.columns), [raw.classes[label] for label in labels]


def _describe(data: Data, task: str, raw: RawData, splits: Splits, findings: Findings) -> dict[str, Any]:
    counts = {name: np.bincount(splits.parts[name][1], minlength=len(raw.classes)) for name in SPLITS}
    return {
        "format": FORMAT,
        "source": data.source,
        "task": task,
        "input_shape": list(raw.inputs.shape[1:]),
        "classes": list(raw.classes),
        "rows": {name: int(counts[name].sum()) for name in SPLITS},
        "class_counts": {
            name: {one: int(n) for one, n in zip(raw.classes, counts[name], strict=True)} for name in SPLITS
        },
        "duplicate_rows": splits.duplicates,
        "duplicates_removed_across_splits": splits.removed,
        "contradictory_rows": splits.contradictions,
        "drift": {name: one.psi for name, one in findings.drift.items()},
        "checks": [check.to_json() for check in findings.checks],
        "success": all(check.success for check in findings.checks if check.critical),
    }


def _explain(failed: list[Check], place: str, quality_html: Path) -> str:
    first = failed[0]
    column = f" ({first.column})" if first.column else ""
    more = f", and {len(failed) - 1} more critical checks failed" if len(failed) > 1 else ""
    return (
        f"{place}: critical check {first.name!r}{column} failed: observed {first.observed}, "
        f"expected {first.rule}{more}; see {quality_html}"
    )
