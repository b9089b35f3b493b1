"""Dynamic INT8: weights are stored in 8 bits, activations are quantized as they come, so nothing is calibrated.

Matrix products alone; convolutions stay FP32, as ONNX Runtime's dynamic ones take twice as long as those.
"""

import tempfile
from pathlib import Path

import onnx

from mlites.compression.quantization.scheme import Scheme, constants, find_layers, prepare, quiet
from mlites.errors import InputError

from onnxruntime.quantization import QuantType, quantize_dynamic  # isort: skip

OPERATORS = ["MatMul", "Gemm"]


def quantize_dynamic_int8(
    model: onnx.ModelProto, *, per_channel: bool = True, reduce_range: bool = False
) -> onnx.ModelProto:
    """Quantize the matrix products of a float model; equal input gives equal bytes.

    Args:
        model: FP32, weights inside; left unchanged.
        per_channel: one weight scale for each output channel.
        reduce_range: 7 bits for weights.

    Raises:
        InputError: the model has no matrix product.
    """
    return dynamic_int8(model, per_channel=per_channel, reduce_range=reduce_range).build(frozenset())


def dynamic_int8(model: onnx.ModelProto, *, per_channel: bool, reduce_range: bool) -> Scheme:
    """The same as a scheme."""
    prepared = prepare(model)
    stored = constants(prepared)
    with_weights = {node.name for node in prepared.graph.node if stored.intersection(node.input[1:2])}
    layers = tuple(layer for layer in find_layers(prepared, OPERATORS) if layer.name in with_weights)
    if not layers:
        raise InputError("dynamic quantization needs a linear layer and this model has none; use method: static")

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as work, quiet():
            given, quantized = Path(work, "given.onnx"), Path(work, "quantized.onnx")
            given.write_bytes(prepared.SerializeToString())
            quantize_dynamic(
                given,
                quantized,
                op_types_to_quantize=OPERATORS,
                per_channel=per_channel,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(kept),
                extra_options={"MatMulConstBOnly": True},
            )
            return onnx.load(quantized)

    return Scheme(layers, build, {"reduce_range": reduce_range})
