"""Static INT8: weights are stored in 8 bits, activations take ranges that calibration found.

Source: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", in ONNX Runtime's QDQ form. Activations are uint8 and weights int8 (U8S8): with int8 activations, the
default of the library, the kernels for x86 are slower than FP32.
"""

import numpy as np
import onnx

from mlites.compression.quantization.calibration import Method, Range, Rows, calibrate
from mlites.compression.quantization.hard_sigmoid import saturate_hard_sigmoids_
from mlites.compression.quantization.scheme import (
    Layer,
    Scheme,
    constants,
    find_layers,
    left_in_float,
    prepare,
    quiet,
)
from mlites.errors import InputError

from onnxruntime.quantization import CalibrationMethod, QuantType  # isort: skip
from onnxruntime.quantization.calibrate import TensorsData  # isort: skip
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer  # isort: skip

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FOLLOWERS = (
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)


def quantize_static_int8(
    model: onnx.ModelProto,
    rows: Rows,
    *,
    per_channel: bool = True,
    calibration: Method = "minmax",
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Quantize every layer of a float model, each tensor by its own range; equal rows give equal bytes.

    Args:
        model: FP32, weights inside; left unchanged.
        rows: training rows (n, *input_shape) that show the range of every activation.
        per_channel: one weight scale for each output channel.
        calibration: the whole range seen, the range of least information loss, or all but the outliers.
        reduce_range: 7 bits for weights.
    """
    scheme = static_int8(
        model,
        rows,
        per_channel=per_channel,
        calibration=calibration,
        reduce_range=reduce_range,
        saturate=False,
    )
    return scheme.build(frozenset())


def static_int8(
    model: onnx.ModelProto,
    rows: Rows,
    *,
    per_channel: bool,
    calibration: Method,
    reduce_range: bool,
    saturate: bool = True,
) -> Scheme:
    """The same as a scheme, calibrated once for every choice of layers.

    Args:
        model: as above.
        rows: as above.
        per_channel: as above.
        calibration: as above.
        reduce_range: as above.
        saturate: hard sigmoids read their input in another scale; without, every tensor keeps the range found for it.

    Raises:
        InputError: the model has no layer to quantize, or calibration fails.
    """
    prepared = prepare(model)
    # products of two activations, as in attention, are not faster in integers and lose more
    layers = tuple(layer for layer in find_layers(prepared, LAYERS) if layer.weights)
    if not layers:
        raise InputError("static quantization needs a convolution or a linear layer and this model has none")
    tensors, heirs = _activations(prepared)
    found = calibrate(prepared, rows, tensors, calibration)
    ranges = found | {name: found[heir] for name, heir in heirs.items() if heir in found}

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        quantized = _insert(prepared, layers, kept, ranges, per_channel=per_channel, reduce_range=reduce_range)
        if saturate:
            saturate_hard_sigmoids_(quantized)
        return quantized

    return Scheme(layers, build, {"calibration_rows": len(rows), "reduce_range": reduce_range})


def _activations(model: onnx.ModelProto) -> tuple[list[str], dict[str, str]]:
    """Tensors to calibrate; and those that only a rectifier reads, with its output, whose range is theirs too."""
    stored, readers = constants(model), [name for node in model.graph.node for name in node.input]
    heirs = {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type in ("Relu", "Clip") and readers.count(node.input[0]) == 1
    }
    inputs = {one.name for one in model.graph.input}
    heirs = {name: heir for name, heir in heirs.items() if name not in inputs}
    tensors = [
        name
        for node in model.graph.node
        if node.op_type in (*LAYERS, *FOLLOWERS)
        for name in (*node.input, *node.output)
        if name and name not in stored and name not in heirs
    ]
    return list(dict.fromkeys(tensors)), heirs


def _insert(
    prepared: onnx.ModelProto,
    layers: tuple[Layer, ...],
    kept: frozenset[str],
    ranges: dict[str, Range],
    *,
    per_channel: bool,
    reduce_range: bool,
) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(prepared)
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with quiet():
        quantizer = QDQQuantizer(
            copied,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(left_in_float(prepared, layers, kept, FOLLOWERS)),
            op_types_to_quantize=[*LAYERS, *FOLLOWERS],
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized
