"""Calibration: the range of every activation, over any number of rows in a fixed amount of memory.

Sources: Migacz (2017), "8-bit Inference with TensorRT", for the range of least information loss; Wu et al. (2020),
"Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", for percentiles. Rows pass once
to find the least and the largest value of each tensor and, where the method looks at the distribution, once more to
count values in bins between the two. Nothing else is kept.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from mlites.errors import InputError
from mlites.inference import INPUT, OUTPUT, explain, open_session

Method = Literal["minmax", "entropy", "percentile"]
Range = tuple[float, float]

BINS = 2048
STEP = 8  # bins between two thresholds that entropy compares: 0.4% of the largest value
LARGEST_CUT = 0.001  # of the values that entropy may clip
PERCENTILE = 99.999  # of the values lie within the range, as many cut off on either side
LARGEST_BATCH = 64
BATCH_BYTES = 32 << 20  # of activations held at a time


class Rows(Protocol):
    """What calibration reads: an array of float32 (n, *input_shape), which may be mapped from a file, or the like."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]: ...


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Numbers of at most so many rows, taken at even distances from first to last.

    >>> evenly(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


def calibrate(model: onnx.ModelProto, rows: Rows, tensors: Sequence[str], method: Method) -> dict[str, Range]:
    """Find the range of activations.

    Args:
        model: float, with unique names.
        rows: shown to the model a few at a time; read twice but for minmax.
        tensors: names of activations; those that are not float32 are left out.
        method: the whole range seen, the range of least information loss, or all but the outliers.

    Returns:
        tensor -> (least, largest) value to represent.

    Raises:
        InputError: there is no row, or the model gives NaN or infinity for one.
    """
    if not len(rows):
        raise InputError("calibration needs one row at least, got none")
    with tempfile.TemporaryDirectory() as work:
        runner = _Runner(_open(model, tensors, Path(work, "model.onnx")), rows, tensors)
        ranges = _find_extremes(runner)
        if method == "minmax":
            return ranges
        count, choose = METHODS[method]
        counts = {name: np.zeros(BINS, np.int64) for name in ranges}
        for values in runner.batches():
            for name, range_ in ranges.items():
                counts[name] += count(values[name].reshape(-1), range_)
    return {name: choose(counts[name], ranges[name]) for name in ranges}


def entropy_bins(counts: NDArray[np.int64], levels: int) -> int:
    """How many bins to keep so that rounding what they hold to ``levels`` values loses least information.

    What lies beyond is clipped to the last bin kept. The loss is the divergence (Kullback & Leibler 1951) of the
    rounded distribution from the clipped one; a bin that only clipping fills makes it infinite. No more than
    `LARGEST_CUT` is clipped: areas of one colour fill single bins, rounding spreads these, and the divergence alone
    would give up 2.5% of the values of a network's first layer (and 13 dB in its logits) to keep them apart.

    Args:
        counts: of magnitudes (bins,), from zero up.
        levels: that the integers have for them.

    >>> entropy_bins(np.full(2048, 10), 128)  # all alike: cutting off loses most
    2048
    """
    best, least = len(counts), np.inf
    total = np.cumsum(counts)
    if not total[-1]:
        return best
    for kept in range(levels, len(counts) + 1, STEP):
        inner = counts[:kept]
        starts = np.arange(levels) * kept // levels
        filled = inner > 0
        each = np.add.reduceat(inner, starts) / np.maximum(np.add.reduceat(filled, starts, dtype=np.int64), 1)
        rounded = np.repeat(each, np.diff(starts, append=kept)) * filled
        clipped = inner.astype(np.float64)
        clipped[-1] += total[-1] - total[kept - 1]
        if total[-1] - total[kept - 1] > LARGEST_CUT * total[-1] or (clipped[-1] and not filled[-1]):
            continue
        p, q = clipped[filled] / total[-1], rounded[filled] / total[kept - 1]
        loss = float(np.sum(p * np.log(p / q)))
        if loss < least:
            best, least = kept, loss
    return best


def percentile_range(counts: NDArray[np.int64], range_: Range, percentile: float = PERCENTILE) -> Range:
    """Edges of the bins (bins,) within which this percentage of the values lies, the rest cut evenly on both sides."""
    edges = np.linspace(*range_, len(counts) + 1)
    below = np.cumsum(counts)
    cut = (1 - percentile / 100) / 2 * below[-1]
    first = int(np.searchsorted(below, cut))
    last = int(np.searchsorted(below, below[-1] - cut))
    return float(edges[first]), float(edges[last + 1])


class _Runner:
    """Shows rows to the model in batches whose activations fit `BATCH_BYTES`."""

    def __init__(self, session: ort.InferenceSession, rows: Rows, tensors: Sequence[str]) -> None:
        self.session, self.rows = session, rows
        self.outputs = [name for name in tensors if name != INPUT]
        self.has_input = INPUT in tensors
        values = self.run(slice(0, 1))
        self.names = [name for name, one in values.items() if one.dtype == np.float32]
        size = sum(one.nbytes for one in values.values())
        self.at_a_time = max(1, min(LARGEST_BATCH, BATCH_BYTES // max(size, 1)))

    def run(self, part: slice) -> dict[str, NDArray[np.float32]]:
        piece = np.ascontiguousarray(self.rows[part], np.float32)
        try:
            found = dict(zip(self.outputs, self.session.run(self.outputs, {INPUT: piece}), strict=True))
        except Exception as error:
            raise InputError(f"calibration: ONNX Runtime cannot run the model: {explain(error)}") from None
        return found | ({INPUT: piece} if self.has_input else {})

    def batches(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for at in range(0, len(self.rows), self.at_a_time):
            yield self.run(slice(at, at + self.at_a_time))


def _open(model: onnx.ModelProto, tensors: Sequence[str], path: Path) -> ort.InferenceSession:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in tensors:
        if name not in (INPUT, OUTPUT):
            shown.graph.output.append(helper.make_empty_tensor_value_info(name))
    path.write_bytes(shown.SerializeToString())
    return open_session(path, threads=1)


def _find_extremes(runner: _Runner) -> dict[str, Range]:
    ranges: dict[str, Range] = {}
    for values in runner.batches():
        for name in runner.names:
            low, high = float(values[name].min()), float(values[name].max())
            if not np.isfinite([low, high]).all():
                raise InputError("calibration: the model gives NaN or infinity for some of the rows; check both")
            before = ranges.get(name, (low, high))
            ranges[name] = (min(low, before[0]), max(high, before[1]))
    return ranges


def _count(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64]:
    """How many of the values (n,) lie in each of the equal bins from ``low`` to ``high``."""
    scale = BINS / (high - low) if high > low else 0.0
    places = (values - np.float32(low)) * np.float32(scale)
    np.clip(places, 0, BINS - 1, out=places)
    return np.bincount(places.astype(np.intp), minlength=BINS)


def _count_magnitudes(values: NDArray[np.float32], range_: Range) -> NDArray[np.int64]:
    """Zeros are left out: every range represents them exactly, and rectifiers make so many that nothing else counts."""
    counts = _count(np.abs(values), 0.0, max(-range_[0], range_[1]))
    counts[0] -= len(values) - np.count_nonzero(values)
    return counts


def _choose_by_entropy(counts: NDArray[np.int64], range_: Range) -> Range:
    low, high = range_
    levels = 256 if low >= 0 or high <= 0 else 128  # a tensor of both signs shares the levels out
    limit = max(-low, high) * entropy_bins(counts, levels) / BINS
    return max(low, -limit), min(high, limit)


METHODS: dict[
    str,
    tuple[
        Callable[[NDArray[np.float32], Range], NDArray[np.int64]],
        Callable[[NDArray[np.int64], Range], Range],
    ],
] = {
    "entropy": (_count_magnitudes, _choose_by_entropy),
    "percentile": (lambda values, range_: _count(values, *range_), percentile_range),
}
