"""Dynamic INT8: weights are stored in 8 bits, activations are quantized as they come, so nothing is calibrated.

Matrix products alone; convolutions stay FP32, as ONNX Runtime's dynamic ones take twice as long as those.
"""

import tempfile
from pathlib import Path

import onnx

from mlites.compression.quantization.static import preprocess, quiet
from mlites.errors import InputError

from onnxruntime.quantization import QuantType, quantize_dynamic  # isort: skip

OPERATORS = ["MatMul", "Gemm"]


def quantize_dynamic_int8(model: onnx.ModelProto, *, per_channel: bool = True) -> onnx.ModelProto:
    """Quantize the matrix products of a float model; equal input gives equal bytes.

    Args:
        model: FP32, weights inside; left unchanged.
        per_channel: one weight scale for each output channel.

    Raises:
        InputError: the model has no matrix product.
    """
    if not any(node.op_type in OPERATORS for node in model.graph.node):
        raise InputError("dynamic quantization needs a linear layer and this model has none; use method: static")
    with tempfile.TemporaryDirectory() as work, quiet():
        quantized = Path(work, "quantized.onnx")
        quantize_dynamic(
            preprocess(model, Path(work)),
            quantized,
            op_types_to_quantize=OPERATORS,
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantized)
