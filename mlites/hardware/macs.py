"""Multiply-accumulates of an ONNX file, counted from the shapes that ONNX Runtime itself computes for one row.

Whoever made the file, whatever its precision: what a file says it costs is read from the file alone.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from mlites.errors import InputError
from mlites.inference import explain


@dataclass(frozen=True)
class _Operands:
    """Positions of data and weight among an operator's inputs."""

    data: int
    weight: int


CONVOLUTIONS = {
    "Conv": _Operands(0, 1),
    "FusedConv": _Operands(0, 1),
    "ConvInteger": _Operands(0, 1),
    "QLinearConv": _Operands(0, 3),
    "ConvTranspose": _Operands(0, 1),
}
PRODUCTS = {
    "MatMul": _Operands(0, 1),
    "Gemm": _Operands(0, 1),
    "FusedMatMul": _Operands(0, 1),
    "FusedGemm": _Operands(0, 1),
    "MatMulInteger": _Operands(0, 1),
    "MatMulIntegerToFloat": _Operands(0, 1),
    "DynamicQuantizeMatMul": _Operands(0, 1),
    "QLinearMatMul": _Operands(0, 3),
    "QGemm": _Operands(0, 3),
    "MatMulNBits": _Operands(0, 1),
}


def count_macs(model: onnx.ModelProto, row: NDArray[np.float32]) -> int:
    """Multiply-accumulates of convolutions and matrix products, a product of two activations included.

    Args:
        model: one input and an open batch; graphs within nodes (If, Loop) are not counted.
        row: one input (1, ...).

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    counted = [node for node in model.graph.node if node.op_type in CONVOLUTIONS or node.op_type in PRODUCTS]
    shapes = _shapes(model, row, {name for node in counted for name in _read(node)})
    return sum(_macs_of(node, shapes) for node in counted)


def _operands(node: onnx.NodeProto) -> _Operands:
    return CONVOLUTIONS[node.op_type] if node.op_type in CONVOLUTIONS else PRODUCTS[node.op_type]


def _read(node: onnx.NodeProto) -> tuple[str, str, str]:
    """Names of data, weight and result."""
    operands = _operands(node)
    return node.input[operands.data], node.input[operands.weight], node.output[0]


def _macs_of(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    data, weight, result = (shapes[name] for name in _read(node))
    if node.op_type == "ConvTranspose":
        return prod(data) * prod(weight[1:])
    if node.op_type in CONVOLUTIONS:
        return prod(result) * prod(weight[1:])
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return prod(result) * data[-2 if transposed else -1]


def _shapes(model: onnx.ModelProto, row: NDArray[np.float32], names: set[str]) -> dict[str, tuple[int, ...]]:
    """Shape of each value that is named, as it is while the model runs on one row."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    wanted = sorted(names)
    del probed.graph.output[:]
    for index, name in enumerate(wanted):
        probed.graph.node.append(helper.make_node("Shape", [name], [f"shape {index}"], f"shape {index}"))
        probed.graph.output.append(helper.make_tensor_value_info(f"shape {index}", onnx.TensorProto.INT64, None))
    if not wanted:
        return {}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {model.graph.input[0].name: row})
    except Exception as error:  # the runtime's errors share no class of their own
        raise InputError(f"the multiply-accumulates of the model cannot be counted: {explain(error)}") from None
    return {name: tuple(int(edge) for edge in shape) for name, shape in zip(wanted, found, strict=True)}
