"""Ranges are those that the definitions say, from rows that pass by in fixed memory."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from scipy.stats import entropy

from mlites.compression.quantization.calibration import (
    BINS,
    LARGEST_CUT,
    STEP,
    calibrate,
    entropy_bins,
    percentile_range,
)
from mlites.compression.quantization.scheme import prepare, quiet
from mlites.errors import InputError


def identity() -> onnx.ModelProto:
    """A model whose inner tensor ``inner`` is its input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["inner"]), helper.make_node("Identity", ["inner"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 50])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 50])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def tensors_of(model: onnx.ModelProto) -> list[str]:
    return ["input", *(name for node in model.graph.node for name in node.output)]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, rows: np.ndarray) -> None:
        self.pieces = iter(np.array_split(rows, 5))

    def get_next(self) -> dict[str, np.ndarray] | None:
        piece = next(self.pieces, None)
        return None if piece is None else {"input": piece}


def test_minmax_finds_what_the_library_finds(networks: dict[str, onnx.ModelProto], pictures: np.ndarray) -> None:
    model = prepare(networks["resnet"])
    with tempfile.TemporaryDirectory() as work, quiet():
        path = Path(work, "model.onnx")
        path.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(path, None, str(path.with_name("augmented.onnx")), CalibrationMethod.MinMax)
        calibrator.collect_data(Reader(pictures))
        theirs = {name: one.range_value for name, one in calibrator.compute_data().items()}
    ours = calibrate(model, pictures, tensors_of(model), "minmax")
    assert len(theirs) > 20 and set(theirs) <= set(ours)
    for name, (low, high) in theirs.items():
        assert ours[name] == pytest.approx((np.asarray(low).item(), np.asarray(high).item()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("percentile", [99.999, 99.0, 90.0])
def test_percentile_lies_within_a_bin_of_the_quantile(percentile: float) -> None:
    values = np.random.default_rng(0).gamma(2.0, size=100_000)
    counts, edges = np.histogram(values, BINS)
    low, high = percentile_range(counts, (edges[0], edges[-1]), percentile)
    tail = (1 - percentile / 100) / 2
    exact = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    width = edges[1] - edges[0]
    assert np.abs(np.array([low, high]) - exact).max() <= width


def test_streamed_percentile_cuts_outliers_that_minmax_keeps() -> None:
    rows = np.random.default_rng(0).normal(size=(7900, 50)).astype(np.float32)
    rows[17, 3] = 40.0
    found = calibrate(identity(), rows, ["inner"], "percentile")["inner"]
    assert calibrate(identity(), rows, ["inner"], "minmax")["inner"][1] == 40.0
    width = (40.0 - rows.min()) / BINS
    assert np.abs(np.array(found) - np.quantile(rows, [5e-6, 1 - 5e-6], method="inverted_cdf")).max() <= width * 1.01


def divergences(counts: np.ndarray, levels: int) -> dict[int, float]:
    """The slides' pseudocode with Python loops, the logarithms from SciPy."""
    found = {}
    for kept in range(levels, len(counts) + 1, STEP):
        if sum(counts[kept:]) > LARGEST_CUT * sum(counts):
            continue
        p = [float(one) for one in counts[:kept]]
        p[-1] += float(sum(counts[kept:]))
        q = [0.0] * kept
        for level in range(levels):
            start, end = level * kept // levels, (level + 1) * kept // levels
            filled = [place for place in range(start, end) if counts[place]]
            for place in filled:
                q[place] = sum(counts[start:end]) / len(filled)
        found[kept] = float(entropy(p, q)) if sum(q) else np.inf
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_entropy_picks_the_least_divergence(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.abs(np.concatenate([generator.standard_t(3, 20_000), generator.normal(size=5000)]))
    counts = np.histogram(values, 256, (0, values.max()))[0]
    expected = divergences(counts, 32)
    best = min(expected.values())
    assert expected[entropy_bins(counts, 32)] == pytest.approx(best, rel=1e-9) and np.isfinite(best)


def test_a_spike_does_not_cost_more_than_a_thousandth() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=1_000_000))
    counts = np.histogram(values, BINS)[0]
    counts[3] += 500_000  # a background of one colour
    kept = entropy_bins(counts, 256)
    assert 0 < counts[kept:].sum() <= LARGEST_CUT * counts.sum()


def test_entropy_clips_a_long_tail_and_spares_a_flat_one() -> None:
    generator = np.random.default_rng(0)
    tail = np.histogram(np.abs(generator.laplace(size=1_000_000)), BINS)[0]
    assert 128 <= entropy_bins(tail, 128) < BINS
    assert entropy_bins(np.full(BINS, 100), 128) == BINS
    assert entropy_bins(np.zeros(BINS, np.int64), 128) == BINS


def test_entropy_ignores_zeros_and_uses_all_levels_for_one_sign() -> None:
    rows = np.random.default_rng(0).exponential(size=(400, 50)).astype(np.float32)
    sparse = np.concatenate([rows, np.zeros_like(rows)])
    assert calibrate(identity(), sparse, ["inner"], "entropy") == {
        "inner": (0.0, calibrate(identity(), rows, ["inner"], "entropy")["inner"][1])
    }
    counts = np.histogram(rows[rows > 0], BINS, (0, rows.max()))[0]
    expected = entropy_bins(counts, 256) / BINS * rows.max()
    assert calibrate(identity(), rows, ["inner"], "entropy")["inner"][1] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_constant_tensor_has_its_range(method: str) -> None:
    rows = np.full((10, 50), 2.5, np.float32)
    assert calibrate(identity(), rows, ["inner"], method)["inner"] == pytest.approx((2.5, 2.5))  # type: ignore[arg-type]
    zeros = calibrate(identity(), 0 * rows, ["inner"], method)["inner"]  # type: ignore[arg-type]
    assert zeros == (0.0, 0.0)


def test_rows_may_lie_in_a_file(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 50)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows, allow_pickle=False)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for method in ("minmax", "entropy", "percentile"):
        assert calibrate(identity(), mapped, ["inner"], method) == calibrate(identity(), rows, ["inner"], method)


def test_no_row_nan_and_a_wrong_shape_are_refused() -> None:
    rows = np.ones((3, 50), np.float32)
    with pytest.raises(InputError, match="calibration needs one row at least, got none"):
        calibrate(identity(), rows[:0], ["inner"], "minmax")
    rows[1, 1] = np.nan
    with pytest.raises(InputError, match="NaN or infinity for some of the rows"):
        calibrate(identity(), rows, ["inner"], "minmax")
    with pytest.raises(InputError, match="calibration: ONNX Runtime cannot run the model"):
        calibrate(identity(), rows[:, :7], ["inner"], "minmax")


def peak_bytes(model: Path, method: str, rows: int) -> int:
    """Peak resident memory of a process that calibrates on so many rows, which it makes as they are read."""
    program = (
        "import sys, numpy as np, onnx\n"
        "from pathlib import Path\n"
        "from mlites.compression.quantization.static import static_int8\n"
        "class Rows:\n"
        "    def __init__(self, count): self.count = count\n"
        "    def __len__(self): return self.count\n"
        "    def __getitem__(self, part):\n"
        "        index = range(self.count)[part]\n"
        "        draw = np.random.default_rng(index.start).normal(size=(len(index), 1, 8, 8))\n"
        "        return draw.astype(np.float32)\n"
        "static_int8(onnx.load(sys.argv[1]), Rows(int(sys.argv[3])), per_channel=True,\n"
        "            calibration=sys.argv[2], reduce_range=False)\n"
        "status = Path('/proc/self/status').read_text().splitlines()\n"
        "print(next(line for line in status if line.startswith('VmHWM')).split()[1])"
    )
    command = [sys.executable, "-c", program, str(model), method, str(rows)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_memory_does_not_grow_with_the_rows(networks: dict[str, onnx.ModelProto], tmp_path: Path, method: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(networks["resnet"].SerializeToString())
    few, many = peak_bytes(path, method, 1000), peak_bytes(path, method, 4000)
    activations = 20 * 8 * 8 * 8 * 4  # at least so many bytes a row, kept by the library's own collectors
    assert many - few < 0.1 * 3000 * activations and many < 400e6


def test_every_activation_is_held_to_the_batch_limit(networks: dict[str, onnx.ModelProto]) -> None:
    assert ort.get_available_providers()  # the runtime is there before its memory is spoken of
    rows = np.random.default_rng(0).normal(size=(200, 1, 8, 8)).astype(np.float32)
    seen: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, part: slice, /) -> np.ndarray:
            seen.append(len(rows[part]))
            return np.asarray(rows[part])

    model = prepare(networks["resnet"])
    calibrate(model, Watched(), tensors_of(model), "minmax")
    assert max(seen) <= 64 and sum(seen) == len(rows) + 1
