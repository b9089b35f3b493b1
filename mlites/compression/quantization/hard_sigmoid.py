"""The hard sigmoid of integers costs nothing: saturation is what they do anyway.

Source: own; after Howard et al. (2019), "Searching for MobileNetV3", who took hard-swish as it suits integers: x * h(x)
with h(x) = clip(x / 6 + 1/2, 0, 1). ONNX Runtime has no integer kernel for h, and takes longer to convert to float and
back around it than for the convolutions beside it. But a tensor stored from x = -3 up as q = (x + 3) z / 3 is clipped
below by the storage itself, and h is min(q, 2z) / 2z: the same integers, read with another scale and zero point.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

ALPHA, BETA = 1 / 6, 0.5
KNEE = 3.0  # h is 0 below its negative and 1 above it


def saturate_hard_sigmoids_(model: onnx.ModelProto) -> int:
    """Replace each hard sigmoid between integers by a second reading of its input.

    Where its input is multiplied with it, as in hard-swish, the input is stored from -3 up; where nothing else reads
    the input, from -3 to 3. Others are left alone.

    Args:
        model: in QDQ form, activations uint8.

    Returns:
        How many were replaced.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    values = {one.name: one for one in graph.initializer}
    replaced = 0
    for gate in [node for node in graph.node if node.op_type == "HardSigmoid" and _is_standard(node)]:
        widened, outputs = producers.get(gate.input[0]), readers[gate.output[0]]
        if widened is None or widened.op_type != "DequantizeLinear" or widened.input[0] not in producers:
            continue
        stored, name = producers[widened.input[0]], widened.input[0]
        if stored.op_type != "QuantizeLinear" or [one.op_type for one in outputs] != ["QuantizeLinear"]:
            continue
        readings = readers[outputs[0].output[0]]
        others = [one for one in readers[widened.output[0]] if one is not gate]
        times = [one for reading in readings for one in readers[reading.output[0]]]
        if len(readers[name]) > 1 or (others and not (others == times and others[0].op_type == "Mul")):
            continue
        zero = 127
        if others:
            scale, point = (float(numpy_helper.to_array(values[one])) for one in stored.input[1:3])
            zero = int(np.clip(np.floor(255 * KNEE / (KNEE + scale * (255 - point))), 1, 255))
        _give_(graph, [stored, widened], f"{name}_from_knee", KNEE / zero, zero)
        _give_(graph, readings, f"{name}_gate", 1 / (2 * zero), 0)
        source = name
        if 2 * zero < 254:
            graph.initializer.append(numpy_helper.from_array(np.array(2 * zero, np.uint8), f"{name}_knee"))
            source = f"{name}_clipped"
            gate.CopyFrom(helper.make_node("Min", [name, f"{name}_knee"], [source], source))
        else:
            graph.node.remove(gate)
        for reading in readings:
            reading.input[0] = source
        for dead in outputs if others else [*outputs, widened]:
            graph.node.remove(dead)
        replaced += 1
    return replaced


def _is_standard(node: NodeProto) -> bool:
    found = {"alpha": 0.2, "beta": 0.5} | {one.name: one.f for one in node.attribute}
    return bool(np.allclose([found["alpha"], found["beta"]], [ALPHA, BETA], rtol=1e-6))


def _give_(graph: onnx.GraphProto, nodes: list[NodeProto], name: str, scale: float, zero: int) -> None:
    """Let nodes convert with a scale and a zero point of their own."""
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), f"{name}_zero"))
    for node in nodes:
        node.input[1:3] = [f"{name}_scale", f"{name}_zero"]
