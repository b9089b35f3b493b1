"""The reference profile: how the values of a dataset are distributed, and how far another has drifted from it.

Source: Siddiqi (2006), Credit Risk Scorecards, for the population stability index (PSI); Yurdakul (2018), Statistical
Properties of Population Stability Index, for its distribution when nothing has changed.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.files import canonical_json, read_document, write_atomically

FORMAT = "mlites-profile/1"
BINS = 10
LARGEST_FEATURES = 64  # beyond it a table is watched through a few numbers a row, as images are
NOISE_QUANTILE = 3.090  # standard normal, 99.9%

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Histogram:
    """Counts of one watched column between ``edges``: bin i holds edges[i-1] < value <= edges[i]; the ends are open."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """What later data are compared with.

    Attributes:
        input_shape: of one input.
        columns: histogram of each watched column.
        classes: rows of each class.
        rows: in the dataset.
    """

    input_shape: tuple[int, ...]
    columns: dict[str, Histogram]
    classes: dict[str, int]
    rows: int


@dataclass(frozen=True)
class Drift:
    """PSI of one column, and how large it gets by chance once in a thousand times when nothing has changed."""

    psi: float
    noise: float


def watched_columns(inputs: NDArray[Any], names: tuple[str, ...]) -> Columns:
    """The columns that are validated and profiled, each (n,): a table's features, or summary statistics of each row.

    Args:
        inputs: images (n, channels, height, width) or a table (n, features).
        names: of the features; empty for images.
    """
    if inputs.ndim == 2 and inputs.shape[1] <= LARGEST_FEATURES:
        return {name: inputs[:, index].astype(np.float64) for index, name in enumerate(names)}
    flat = inputs.reshape(len(inputs), -1)
    if inputs.ndim == 2:
        known = np.where(np.isfinite(flat), flat, np.nan)
        filled = np.nan_to_num(known)
        return {
            "missing values": np.isnan(flat).sum(axis=1).astype(np.float64),
            "infinite values": np.isinf(flat).sum(axis=1).astype(np.float64),
            "mean": filled.mean(axis=1, dtype=np.float64),
            "spread": filled.std(axis=1, dtype=np.float64),
            "smallest": filled.min(axis=1).astype(np.float64),
            "largest": filled.max(axis=1).astype(np.float64),
        }
    columns = {
        "brightness": flat.mean(axis=1, dtype=np.float64),
        "contrast": _in_pieces(flat, lambda piece: piece.std(axis=1, dtype=np.float64)),
        "darkest": flat.min(axis=1).astype(np.float64),
        "brightest": flat.max(axis=1).astype(np.float64),
        "detail": _in_pieces(inputs, _detail),
    }
    if inputs.shape[1] > 1:
        for channel in range(inputs.shape[1]):
            columns[f"channel {channel}"] = inputs[:, channel].mean(axis=(1, 2), dtype=np.float64)
    return columns


def _in_pieces(array: NDArray[Any], function: Any) -> NDArray[np.float64]:
    """Apply to 4096 rows at a time: floats of a whole dataset would not fit."""
    return np.concatenate([function(array[start : start + 4096]) for start in range(0, len(array), 4096)])


def _detail(images: NDArray[Any]) -> NDArray[np.float64]:
    """Mean absolute step between neighbouring pixels: low for blurred images."""
    signed = images.astype(np.int16)
    total = np.zeros(len(images))
    for axis in (2, 3):
        if images.shape[axis] > 1:
            total += np.abs(np.diff(signed, axis=axis)).mean(axis=(1, 2, 3))
    return total


def make_profile(inputs_shape: tuple[int, ...], columns: Columns, classes: dict[str, int]) -> Profile:
    """Histograms with bins of about equal counts.

    Args:
        inputs_shape: of one input.
        columns: watched columns (n,), without NaN.
        classes: rows of each class.
    """
    histograms = {}
    for name, values in columns.items():
        edges = _edges(values)
        histograms[name] = Histogram(edges, _counts(values, edges))
    return Profile(inputs_shape, histograms, classes, sum(classes.values()))


def _edges(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Deciles; one that repeats is a value of its own and gets a bin of its own."""
    deciles = np.quantile(values, np.linspace(0, 1, BINS + 1), method="inverted_cdf")
    distinct, repeats = np.unique(deciles, return_counts=True)
    alone = distinct[repeats > 1]
    inner = np.unique(np.concatenate([distinct[(distinct > deciles[0]) & (distinct < deciles[-1])], alone]))
    return tuple(float(edge) for edge in np.unique(np.concatenate([inner, np.nextafter(alone, -np.inf)])))


def _counts(values: NDArray[np.float64], edges: tuple[float, ...]) -> tuple[int, ...]:
    bins = np.searchsorted(np.asarray(edges), values, side="left")
    return tuple(int(count) for count in np.bincount(bins, minlength=len(edges) + 1))


def population_stability_index(expected: NDArray[Any], observed: NDArray[Any]) -> float:
    """Sum over bins of (q - p) ln(q / p), with half a count added to each bin so that an empty one stays finite.

    Args:
        expected: reference counts (bins,), which give the shares p.
        observed: counts (bins,) to compare, which give q.
    """
    p = (expected + 0.5) / (expected + 0.5).sum()
    q = (observed + 0.5) / (observed + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def chance_level(bins: int, expected_rows: int, observed_rows: int) -> float:
    """PSI that chance alone exceeds once in a thousand: chi-square with bins - 1 degrees, times 1/n + 1/m.

    The quantile is Wilson and Hilferty's (1931), within 4% from 1 degree on.
    """
    degrees = max(bins - 1, 1)
    shrink = 2 / (9 * degrees)
    quantile = degrees * (1 - shrink + NOISE_QUANTILE * math.sqrt(shrink)) ** 3
    return quantile * (1 / max(expected_rows, 1) + 1 / max(observed_rows, 1))


def measure_drift(reference: Profile, columns: Columns, classes: dict[str, int]) -> tuple[dict[str, Drift], Drift]:
    """Drift of every watched column, and that of the class frequencies.

    Args:
        reference: of the earlier data, with the same columns.
        columns: watched columns (n,) of the data to compare.
        classes: rows of each class in them.
    """
    rows = sum(classes.values())
    drifts = {
        name: _drift(histogram.counts, _counts(columns[name], histogram.edges), reference.rows, rows)
        for name, histogram in reference.columns.items()
    }
    every = sorted(set(reference.classes) | set(classes))
    before = tuple(reference.classes.get(name, 0) for name in every)
    return drifts, _drift(before, tuple(classes.get(name, 0) for name in every), reference.rows, rows)


def _drift(before: tuple[int, ...], after: tuple[int, ...], before_rows: int, after_rows: int) -> Drift:
    psi = population_stability_index(np.asarray(before), np.asarray(after))
    return Drift(psi, chance_level(len(before), before_rows, after_rows))


def write_profile(profile: Profile, path: Path) -> None:
    """Write as canonical JSON; equal profiles give equal bytes."""
    document = {
        "format": FORMAT,
        "input_shape": list(profile.input_shape),
        "rows": profile.rows,
        "classes": profile.classes,
        "columns": {name: {"edges": list(h.edges), "counts": list(h.counts)} for name, h in profile.columns.items()},
    }
    write_atomically(path, canonical_json(document))


def read_profile(path: Path) -> Profile:
    """Read what ``write_profile`` wrote; anything may be in a user's file, so every field is checked.

    Raises:
        InputError: not such a file.
    """
    document = read_document(path, FORMAT, "reference profile")
    try:
        _require(
            set(document) == {"format", "input_shape", "rows", "classes", "columns"}, "unexpected or missing fields"
        )
        _require(_are_counts(document["input_shape"]) and _are_counts([document["rows"]]), "input_shape or rows")
        classes, columns = document["classes"], document["columns"]
        _require(isinstance(classes, dict) and _are_counts(list(classes.values())), "classes must be counts")
        _require(sum(classes.values()) == document["rows"] > 0, "classes must add up to rows")
        _require(isinstance(columns, dict) and len(columns) > 0, "columns must be histograms")
        histograms = {name: _histogram(name, value, document["rows"]) for name, value in columns.items()}
    except ValueError as error:
        raise InputError(f"{path}: not a valid {FORMAT} document: {error}") from None
    return Profile(tuple(document["input_shape"]), histograms, classes, document["rows"])


def _histogram(name: str, value: Any, rows: int) -> Histogram:
    _require(isinstance(value, dict) and set(value) == {"edges", "counts"}, f"column {name!r} needs edges and counts")
    edges, counts = value["edges"], value["counts"]
    numbers = isinstance(edges, list) and all(type(edge) in (int, float) and math.isfinite(edge) for edge in edges)
    _require(numbers and all(a < b for a, b in itertools.pairwise(edges)), f"column {name!r}: edges must rise")
    _require(
        _are_counts(counts) and len(counts) == len(edges) + 1 and sum(counts) == rows,
        f"column {name!r}: counts must be one more than edges and add up to rows",
    )
    return Histogram(tuple(map(float, edges)), tuple(counts))


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 53 for value in values)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)
