"""Where ONNX Runtime quantizes a graph, read from a QDQ model; and learned weights and ranges, written into it.

The places come from a statically quantized model of the same graph. What training learned replaces its numbers alone,
so that the same kernels run and the model is as fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from mlites.compression.quantization.fake_quantization import activation_scale, weight_scale

SUFFIX = "_quantized"  # of a stored tensor's integers, after its name
LARGEST_BIAS = 2.0**30  # half of what 32 bits hold; the rest is for the sums that are added to it


@dataclass(frozen=True)
class Pair:
    """Names of the scale and the zero point of an activation, and the numbers they have."""

    scale: str
    zero_point: str
    low: float
    high: float


@dataclass(frozen=True)
class Stored:
    """A stored tensor that the model holds as integers.

    Attributes:
        scale: name of its scale.
        zero_point: name of its zero point.
        axis: of the channels that each have a scale; None: one for all.
    """

    scale: str
    zero_point: str
    axis: int | None


@dataclass(frozen=True)
class Bias:
    """A bias in 32 bits, whose scale is the product of its layer's other two.

    Attributes:
        stored: as of other tensors.
        source: tensor name of the layer's input.
        weight: name of the layer's weight.
        factor: that the bias is multiplied by.
    """

    stored: Stored
    source: str
    weight: str
    factor: float


@dataclass(frozen=True)
class Places:
    """What a QDQ model quantizes, by the names that tensors have in the float model.

    Attributes:
        activations: outputs of nodes, and the input; several may share one pair.
        weights: int8.
        constants: uint8, stored operands of additions and products.
        biases: int32.
    """

    activations: dict[str, Pair]
    weights: dict[str, Stored]
    constants: dict[str, Stored]
    biases: dict[str, Bias]


def find_places(quantized: onnx.ModelProto, prepared: onnx.ModelProto) -> Places:
    """Read the places from a QDQ model.

    Args:
        quantized: by ``quantize_static_int8``.
        prepared: the float model that it was made from.
    """
    graph = quantized.graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    dequantized = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    outputs = {one.name for one in graph.output}
    factors = {
        node.input[2]: next((one.f for one in node.attribute if one.name == "beta"), 1.0)
        for node in prepared.graph.node
        if node.op_type == "Gemm" and len(node.input) > 2
    }
    places = Places({}, {}, {}, {})
    origins: dict[str, str] = {}  # output of a dequantization -> float tensor's name
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            pair = dequantized[node.output[0]]
            name = pair.output[0] if pair.output[0] in outputs else node.input[0]
            scale, zero_point = float(values[node.input[1]]), int(values[node.input[2]])
            places.activations[name] = Pair(
                node.input[1], node.input[2], -zero_point * scale, (255 - zero_point) * scale
            )
            origins[pair.output[0]] = name
    stored = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    origins |= {node.output[0]: node.input[0].removesuffix(SUFFIX) for node in stored}
    for node in stored:
        name, kind = origins[node.output[0]], values[node.input[0]].dtype
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
        place = Stored(node.input[1], node.input[2], axis if values[node.input[1]].size > 1 else None)
        if kind == np.int32:
            layer = next(one for one in graph.node if node.output[0] in one.input)
            source, weight = (origins[one] for one in layer.input[:2])
            places.biases[name] = Bias(place, source, weight, factors.get(name, 1.0))
        else:
            (places.weights if kind == np.int8 else places.constants)[name] = place
    return places


def write_learned_(
    quantized: onnx.ModelProto,
    places: Places,
    ranges: Mapping[str, tuple[Tensor, Tensor]],
    stored: Mapping[str, Tensor],
    levels: int,
) -> None:
    """Replace the numbers of a QDQ model by learned ones.

    Args:
        quantized: the model that ``places`` was read from.
        places: in it.
        ranges: activation -> learned low and high, for the first of those that share a pair at least.
        stored: learned float values by name, of all tensors in weights, constants and biases.
        levels: largest integer of a weight.
    """
    found: dict[str, NDArray[np.generic]] = {}
    scales: dict[str, Tensor] = {}
    for name, (low, high) in ranges.items():
        pair, (scale, zero_point) = places.activations[name], activation_scale(low, high)
        found |= {pair.scale: scale.numpy(), pair.zero_point: zero_point.numpy().astype(np.uint8)}
        scales[pair.scale] = scale
    for name, one in places.constants.items():
        scale, zero_point = activation_scale(*torch.aminmax(stored[name]))
        found |= {one.scale: scale.numpy(), one.zero_point: zero_point.numpy().astype(np.uint8)}
        integers = torch.round(stored[name] / scale) + zero_point
        found[name + SUFFIX] = integers.clamp(0, 255).numpy().astype(np.uint8)
    steps = {name: weight_scale(stored[name], one.axis, levels) for name, one in places.weights.items()}
    for name, bias in places.biases.items():
        needed = (stored[name] * bias.factor).abs() / (scales[places.activations[bias.source].scale] * LARGEST_BIAS)
        # a channel of next to no weight has too fine a scale for its bias in 32 bits
        steps[bias.weight] = steps[bias.weight].maximum(needed if steps[bias.weight].dim() else needed.max())
    for name, one in places.weights.items():
        across = [1] * stored[name].dim()
        if one.axis is not None:
            across[one.axis] = -1
        integers = torch.round(stored[name] / steps[name].reshape(across)).clamp(-levels, levels)
        found |= {one.scale: steps[name].numpy(), name + SUFFIX: integers.numpy().astype(np.int8)}
    for name, bias in places.biases.items():
        step = scales[places.activations[bias.source].scale].double() * steps[bias.weight].double()
        integers = torch.round(stored[name].double() * bias.factor / step)
        found |= {bias.stored.scale: step.float().numpy(), name + SUFFIX: integers.numpy().astype(np.int32)}
    for initializer in quantized.graph.initializer:
        if initializer.name in found:
            given = found[initializer.name].reshape(tuple(initializer.dims))
            assert numpy_helper.to_array(initializer).dtype == given.dtype, initializer.name
            initializer.CopyFrom(numpy_helper.from_array(given, initializer.name))
        elif initializer.name in stored:
            initializer.CopyFrom(numpy_helper.from_array(stored[initializer.name].numpy(), initializer.name))
