"""INT4 for weights alone: blocks of a matrix's column share a scale and a zero point, activations stay float.

Source: Frantar et al. (2023), "GPTQ", section 4, for groups of weights; rounding is to nearest. The product is ONNX
Runtime's MatMulNBits: the standard form, a DequantizeLinear before each product, is widened anew in every call, which
took ten times as long as FP32.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlites.compression.quantization.scheme import Scheme, find_layers, prepare
from mlites.errors import InputError

from onnxruntime.quantization.onnx_model import ONNXModel  # isort: skip

LEVELS = 15
SMALLEST = 1024  # weights in a matrix for which the gain exceeds the cost of a private operator
INT8_ACTIVATIONS = (
    4  # MatMulNBits rounds each block of activations to 8 bits within the product, which is its fast path
)


def int4(model: onnx.ModelProto, block_size: int) -> Scheme:
    """Store the large matrices of a model in 4 bits; convolutions and small matrices stay as they are.

    Args:
        model: FP32, weights inside; left unchanged.
        block_size: weights that share a scale.

    Raises:
        InputError: the model has no such matrix.
    """
    wrapped = ONNXModel(prepare(model))
    wrapped.replace_gemm_with_matmul()
    prepared: onnx.ModelProto = wrapped.model
    values = {one.name: one for one in prepared.graph.initializer if one.data_type == TensorProto.FLOAT}
    products = {node.name: node for node in prepared.graph.node if node.op_type == "MatMul" and node.input[1] in values}
    found = [layer for layer in find_layers(prepared, ("MatMul",)) if layer.name in products]
    layers = tuple(layer for layer in found if _is_large(values[products[layer.name].input[1]], block_size))
    if not layers:
        names = ", ".join(layer.label for layer in found[:8]) or "none"
        raise InputError(
            f"int4 needs a matrix of {SMALLEST} weights and {block_size} rows at least, and this model has {names}; "
            "use method: static"
        )

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        return _insert(prepared, {layer.name for layer in layers} - kept, block_size)

    return Scheme(layers, build, {"block_size": block_size, "runs_on": "ONNX Runtime alone (MatMulNBits)"})


def quantize_blocks(
    matrix: NDArray[np.float32], block_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Round a matrix (k, n) to 4 bits.

    Returns:
        Values 0 to 15 (n, blocks, block_size), scales and zero points (n, blocks): a weight is about
        (value - zero point) * scale. The last block of a column is filled up with zeros.
    """
    rows, columns = matrix.shape
    blocks = -(-rows // block_size)
    padded = np.zeros((blocks * block_size, columns), np.float32)
    padded[:rows] = matrix
    pieces = np.ascontiguousarray(padded.T).reshape(columns, blocks, block_size)
    low, high = np.minimum(pieces.min(2), 0), np.maximum(pieces.max(2), 0)
    scales = (high - low) / np.float32(LEVELS)
    scales[scales == 0] = 1
    zeros = np.round(-low / scales).astype(np.uint8)
    values = np.clip(np.round(pieces / scales[..., None]) + zeros[..., None], 0, LEVELS).astype(np.uint8)
    return values, scales, zeros


def _is_large(constant: TensorProto, block_size: int) -> bool:
    return len(constant.dims) == 2 and constant.dims[0] >= block_size and int(np.prod(constant.dims)) >= SMALLEST


def _insert(prepared: onnx.ModelProto, chosen: set[str], block_size: int) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    values = {one.name: one for one in prepared.graph.initializer}
    stored: set[str] = set()
    for node in model.graph.node:
        if node.name not in chosen:
            continue
        rows, name = node.input
        matrix = numpy_helper.to_array(values[name])
        if name not in stored:
            stored.add(name)
            quantized, scales, zeros = quantize_blocks(matrix, block_size)
            for part, suffix in ((_pack(quantized), "values"), (scales, "scales"), (_pack(zeros), "zeros")):
                model.graph.initializer.append(numpy_helper.from_array(part, f"{name}_{suffix}"))
        replacement = helper.make_node(
            "MatMulNBits",
            [rows, *(f"{name}_{suffix}" for suffix in ("values", "scales", "zeros"))],
            list(node.output),
            node.name,
            domain="com.microsoft",
            K=matrix.shape[0],
            N=matrix.shape[1],
            bits=4,
            block_size=block_size,
            accuracy_level=INT8_ACTIVATIONS,
        )
        node.CopyFrom(replacement)
    read = {name for node in model.graph.node for name in node.input}
    for one in [one for one in model.graph.initializer if one.name not in read]:
        model.graph.initializer.remove(one)
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _pack(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two neighbours (..., n) in a byte, the first in its lower half (..., n / 2 rounded up)."""
    if values.shape[-1] % 2:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    packed: NDArray[np.uint8] = values[..., ::2] + values[..., 1::2] * np.uint8(16)
    return packed
