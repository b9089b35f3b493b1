"""Four bits in blocks: rounding as defined, the library's format, and no claim on convolutions."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.compression.quantization.int4 import int4, quantize_blocks
from mlites.errors import InputError
from mlites.export import answers

NONE: frozenset[str] = frozenset()


def widen(values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, rows: int) -> np.ndarray:
    """(k, n) back from blocks."""
    wide = (values.astype(np.float64) - zeros[..., None]) * scales[..., None]
    return np.asarray(wide.reshape(len(values), -1).T[:rows])


def nearest(matrix: np.ndarray, block: int) -> np.ndarray:
    """Round each block of a column to 16 even steps between its least and largest value, by the book."""
    wide = np.zeros(matrix.shape)
    for column in range(matrix.shape[1]):
        for start in range(0, len(matrix), block):
            piece = matrix[start : start + block, column].astype(np.float64)
            low, high = min(piece.min(), 0), max(piece.max(), 0)
            scale = (high - low) / 15
            zero = np.round(-low / scale)
            wide[start : start + block, column] = (np.clip(np.round(piece / scale) + zero, 0, 15) - zero) * scale
    return wide


@pytest.mark.parametrize(("rows", "block"), [(64, 32), (50, 16), (128, 128), (33, 32)])
def test_blocks_are_rounded_to_nearest(rows: int, block: int) -> None:
    matrix = np.random.default_rng(0).standard_t(4, size=(rows, 6)).astype(np.float32)
    found = widen(*quantize_blocks(matrix, block), rows)
    plain = nearest(matrix, block)
    assert np.square(found - matrix).sum() == pytest.approx(np.square(plain - matrix).sum(), rel=1e-3, abs=1e-9)
    assert np.mean(np.abs(found - plain) < 1e-5) > 0.98  # the others lie between two steps


def test_sixteen_even_values_are_exact() -> None:
    matrix = (np.arange(32).reshape(-1, 1) % 16 - 5).astype(np.float32) * 0.25
    values, scales, zeros = quantize_blocks(matrix, 32)
    assert np.array_equal(widen(values, scales, zeros, 32), matrix)
    assert scales.item() == 0.25 and zeros.item() == 5 and set(values.ravel()) == set(range(16))


def test_a_block_of_zeros_stays_zero() -> None:
    assert not widen(*quantize_blocks(np.zeros((32, 2), np.float32), 32), 32).any()


def linear(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """rows (n, k) @ weight (k, m) + bias, as PyTorch's linear layer is exported: the weight lies transposed."""
    node = helper.make_node("Gemm", ["input", "weight", "bias"], ["logits"], transB=1)
    rows = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", len(weight)])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])
    stored = [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph([node], "linear", [rows], [logits], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("width", [64, 100])
def test_the_runtime_computes_with_the_rounded_matrix(block: int, width: int) -> None:
    generator = np.random.default_rng(0)
    rows, matrix, bias = (generator.normal(size=size).astype(np.float32) for size in ((30, width), (width, 40), (40,)))
    expected = rows @ widen(*quantize_blocks(matrix, block), width) + bias
    found = answers(int4(linear(matrix, bias), block).build(NONE), rows)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # activations are rounded to 8 bits


def test_attention_keeps_its_answers_and_loses_its_bytes(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray
) -> None:
    scheme = int4(networks["attention"], 32)
    model = scheme.build(NONE)
    onnx.checker.check_model(model)
    expected, found = answers(networks["attention"], pictures), answers(model, pictures)
    assert np.square(found - expected).sum() < 0.05 * np.square(expected).sum()
    weights = sum(layer.weights for layer in scheme.layers)
    assert networks["attention"].ByteSize() - model.ByteSize() > 0.7 * 4 * weights
    kept = scheme.build(frozenset({scheme.layers[0].name}))
    kinds = [[node.op_type for node in one.graph.node].count("MatMulNBits") for one in (model, kept)]
    assert kinds == [len(scheme.layers), len(scheme.layers) - 1]


def test_convolutions_alone_are_refused_with_the_small_matrices(networks: dict[str, onnx.ModelProto]) -> None:
    with pytest.raises(InputError, match=r"1024 weights and 32 rows .* has MatMul 1 \(32x4\); use method: static"):
        int4(networks["resnet"], 32)
    with pytest.raises(InputError, match=r"this model has MatMul 1 \(64x4\)"):
        int4(linear(np.ones((64, 4), np.float32), np.ones(4, np.float32)), 32)
