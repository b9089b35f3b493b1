"""INT8 models hold what the arithmetic of quantization says, and the same bytes each time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mlites.compression.quantization.dynamic import quantize_dynamic_int8
from mlites.compression.quantization.static import quantize_static_int8
from mlites.errors import InputError
from mlites.export import answers, compact_, export_onnx


@pytest.fixture(scope="module")
def convolution() -> onnx.ModelProto:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten())
    return export_onnx(nn.Sequential(*layers, nn.Linear(64, 3)), (1, 8, 8))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(150, 1, 8, 8)).astype(np.float32)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def weights_of(model: onnx.ModelProto) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """(int8 values, scales, zero points, axis) of every stored weight."""
    found, values = [], constants(model)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].dtype == np.int8:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            found.append((*(values[name] for name in node.input), axis))
    return found


@pytest.mark.parametrize("per_channel", [True, False])
def test_stored_weights_lie_within_half_a_step(
    convolution: onnx.ModelProto, rows: np.ndarray, per_channel: bool
) -> None:
    quantized = quantize_static_int8(convolution, rows, per_channel=per_channel)
    floats = {v.shape: v for v in constants(convolution).values() if v.ndim > 1}
    stored = weights_of(quantized)
    assert len(stored) == 3
    for values, scales, zeros, axis in stored:
        original = floats.get(values.shape, floats.get(values.T.shape, np.zeros(0)).T)
        across = [1] * values.ndim
        across[axis if scales.size > 1 else 0] = -1
        error = np.abs(values * scales.reshape(across) - original)
        assert (error <= scales.reshape(across) / 2 * (1 + 1e-5)).all()
        assert not zeros.any()  # symmetric
        assert (scales.size > 1) == per_channel


def test_activations_are_uint8_and_no_operator_is_private(convolution: onnx.ModelProto, rows: np.ndarray) -> None:
    quantized = quantize_static_int8(convolution, rows)
    compact_(quantized)
    values = constants(quantized)
    kinds = {values[node.input[2]].dtype for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.uint8)}
    assert {entry.domain for entry in quantized.opset_import} == {""}
    assert all(node.domain == "" for node in quantized.graph.node)


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
def test_answers_stay_near_the_float_models(convolution: onnx.ModelProto, rows: np.ndarray, calibration: str) -> None:
    quantized = quantize_static_int8(convolution, rows, calibration=calibration)
    expected, found = answers(convolution, rows), answers(quantized, rows)
    noise = np.square(found - expected).mean() / np.square(expected).mean()
    assert noise < (0.002 if calibration == "minmax" else 0.1)


def test_minmax_scale_is_the_range_over_255(convolution: onnx.ModelProto, rows: np.ndarray) -> None:
    quantized = quantize_static_int8(convolution, rows)
    values = constants(quantized)
    first = next(node for node in quantized.graph.node if node.input[0] == "input")
    assert values[first.input[1]] == pytest.approx((rows.max() - rows.min()) / 255, rel=1e-5)


def test_rows_beyond_the_first_piece_calibrate_too(convolution: onnx.ModelProto, rows: np.ndarray) -> None:
    outlier = rows.copy()
    outlier[-1] *= 100
    quantized = quantize_static_int8(convolution, outlier)
    first = next(node for node in quantized.graph.node if node.input[0] == "input")
    assert constants(quantized)[first.input[1]] == pytest.approx((outlier.max() - outlier.min()) / 255, rel=1e-5)


def test_model_in_memory_is_left_unchanged(convolution: onnx.ModelProto, rows: np.ndarray) -> None:
    before = convolution.SerializeToString(deterministic=True)
    quantize_static_int8(convolution, rows)
    quantize_dynamic_int8(convolution)
    assert convolution.SerializeToString(deterministic=True) == before


def test_dynamic_leaves_convolutions_in_float(convolution: onnx.ModelProto, rows: np.ndarray) -> None:
    quantized = quantize_dynamic_int8(convolution)
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("Conv") == 2 and "MatMulInteger" in kinds and "Gemm" not in kinds
    assert np.abs(answers(quantized, rows) - answers(convolution, rows)).max() < 0.05


def test_dynamic_without_a_linear_layer_is_refused() -> None:
    model = export_onnx(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), (1, 8, 8))
    with pytest.raises(InputError, match="needs a linear layer and this model has none; use method: static"):
        quantize_dynamic_int8(model)


def test_bytes_are_the_same_in_every_process(convolution: onnx.ModelProto, rows: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(convolution.SerializeToString())
    np.save(tmp_path / "rows.npy", rows, allow_pickle=False)
    program = (
        "import hashlib, numpy as np, onnx\n"
        "from mlites.compression.quantization.dynamic import quantize_dynamic_int8\n"
        "from mlites.compression.quantization.static import quantize_static_int8\n"
        "model, rows = onnx.load('model.onnx'), np.load('rows.npy')\n"
        "for one in (quantize_static_int8(model, rows, calibration='entropy'), quantize_dynamic_int8(model)):\n"
        "    print(hashlib.sha256(one.SerializeToString(deterministic=True)).hexdigest())"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        outputs.add(done.stdout)
    assert len(outputs) == 1 and len(outputs.pop().splitlines()) == 2


def test_compact_model_is_smaller_and_answers_alike(convolution: onnx.ModelProto, rows: np.ndarray) -> None:
    quantized = quantize_static_int8(convolution, rows)
    before, size = answers(quantized, rows), quantized.ByteSize()
    compact_(quantized)
    assert np.array_equal(answers(quantized, rows), before) and quantized.ByteSize() < size - 1000
