"""ONNX operators (opset 18) in torch, with gradients: those that the exporter writes for networks of layers.

Integers that are shapes, axes or places stay on the CPU, as torch takes them as Python numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

Attributes = dict[str, Any]
Result = Tensor | tuple[Tensor, ...]

TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


def _numbers(tensor: Tensor) -> list[int]:
    return [int(one) for one in tensor.flatten().tolist()]


def _pad_before(attributes: Attributes, x: Tensor, fill: float) -> tuple[Tensor, list[int]]:
    """Spatial padding that torch's layers take themselves, after any that differs from side to side is applied."""
    dimensions = x.dim() - 2
    pads = list(attributes.get("pads") or [0] * 2 * dimensions)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotImplementedError(f"auto_pad {attributes['auto_pad']}")
    first, last = pads[:dimensions], pads[dimensions:]
    if first == last:
        return x, first
    sides = [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]
    return F.pad(x, sides, value=fill), [0] * dimensions


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _pad_before(attributes, x, 0.0)
    dimensions = x.dim() - 2
    stride, dilation = attributes.get("strides", [1] * dimensions), attributes.get("dilations", [1] * dimensions)
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
    return convolve(x, weight, bias, stride, padding, dilation, attributes.get("group", 1))


def _conv_transpose(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dimensions = x.dim() - 2
    pads = list(attributes.get("pads") or [0] * 2 * dimensions)
    if pads[:dimensions] != pads[dimensions:] or "output_shape" in attributes:
        raise NotImplementedError("uneven padding")
    ones, zeros = [1] * dimensions, [0] * dimensions
    convolve: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
    return convolve(
        x, weight, bias, attributes.get("strides", ones), pads[:dimensions], attributes.get("output_padding", zeros),
        attributes.get("group", 1), attributes.get("dilations", ones),
    )  # fmt: skip


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if attributes.get("transA") else a
    weight = b if attributes.get("transB") else b.t()
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
    if alpha == beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    dimensions = x.dim() - 2
    x, padding = _pad_before(attributes, x, float("-inf"))
    ones = [1] * dimensions
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dimensions - 1]
    return pool(
        x, attributes["kernel_shape"], attributes.get("strides", ones), padding, attributes.get("dilations", ones),
        bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    dimensions = x.dim() - 2
    included = bool(attributes.get("count_include_pad", 0))
    x, padding = _pad_before(attributes, x, 0.0)
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dimensions - 1]
    strides = attributes.get("strides", [1] * dimensions)
    return pool(x, attributes["kernel_shape"], strides, padding, bool(attributes.get("ceil_mode", 0)), included)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _numbers(axes) if axes is not None else list(attributes.get("axes", ()))
        if not chosen and attributes.get("noop_with_empty_axes"):
            return x
        return function(x, chosen or list(range(x.dim())), bool(attributes.get("keepdims", 1)))

    return reduce


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _batch_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1)
    return F.layer_norm(x, x.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))


def _instance_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _group_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = attributes["num_groups"]
    if scale.numel() == groups:  # before opset 21 one value a group
        scale, bias = (one.repeat_interleave(x.shape[1] // groups) for one in (scale, bias))
    return F.group_norm(x, groups, scale, bias, attributes.get("epsilon", 1e-5))


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _clip(_: Attributes, x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
    if least is not None:
        x = torch.maximum(x, least)
    return x if most is None else torch.minimum(x, most)


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return (x * float(attributes.get("alpha", 0.2)) + float(attributes.get("beta", 0.5))).clamp(0, 1)


def _gelu(attributes: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _numbers(shape)
    if not attributes.get("allowzero"):
        sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1) % (x.dim() + 1)
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _transpose(attributes: Attributes, x: Tensor) -> Tensor:
    return x.permute(attributes.get("perm") or list(range(x.dim()))[::-1])


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes)))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    places = _numbers(axes)
    rank = x.dim() + len(places)
    for axis in sorted(place % rank for place in places):
        x = x.unsqueeze(axis)
    return x


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, _numbers(sizes), axis)
    return torch.split(x, -(-x.shape[axis] // attributes["outputs"]), axis)


def _slice(
    _: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = _numbers(starts), _numbers(ends)
    along = _numbers(axes) if axes is not None else list(range(len(first)))
    by = _numbers(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.dim()
    places = indices.to(x.device, torch.int64)
    places = torch.where(places < 0, places + x.shape[axis], places)
    taken = x.index_select(axis, places.flatten())
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = attributes.get("axis", 0)
    places = indices.to(x.device, torch.int64)
    return x.gather(axis, torch.where(places < 0, places + x.shape[axis], places))


def _expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _numbers(shape)
    ones = [1] * (x.dim() - len(sizes)) + sizes
    return x.expand([size if wanted == 1 else wanted for size, wanted in zip(_aligned(x, ones), ones, strict=True)])


def _aligned(x: Tensor, like: list[int]) -> list[int]:
    """Sizes of x with ones in front, as broadcasting sees them."""
    return [1] * (len(like) - x.dim()) + list(x.shape)


def _pad(
    attributes: Attributes, x: Tensor, pads: Tensor, fill: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    numbers = _numbers(pads)
    along = [axis % x.dim() for axis in _numbers(axes)] if axes is not None else list(range(x.dim()))
    sides = [0] * 2 * x.dim()
    for place, axis in enumerate(along):
        first = 2 * (x.dim() - 1 - axis)
        sides[first], sides[first + 1] = numbers[place], numbers[place + len(along)]
    mode = {"edge": "replicate", "wrap": "circular"}.get(attributes.get("mode", "constant"), attributes.get("mode"))
    if mode in (None, "constant"):
        return F.pad(x, sides, value=0.0 if fill is None else float(fill))
    return F.pad(x, sides[:-4], mode=mode)  # of rows and channels torch repeats none


def _where(_: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    device = next((one.device for one in (x, y, condition) if one.device.type != "cpu"), x.device)
    return torch.where(condition.to(device), x.to(device), y.to(device))


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _constant(attributes: Attributes) -> Tensor:
    kinds = {"value_float": torch.float32, "value_floats": torch.float32}
    for name in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if name in attributes:
            value = attributes[name]
            return value if isinstance(value, Tensor) else torch.tensor(value, dtype=kinds.get(name, torch.int64))
    raise NotImplementedError("a constant that is no number")


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value: Tensor = attributes.get("value", torch.zeros(1))
    return value.expand(_numbers(shape)).clone()


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, attributes["axis"])


def _divide(_: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _trilu(attributes: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = int(k) if k is not None else 0
    return x.triu(diagonal) if attributes.get("upper", 1) else x.tril(diagonal)


def _resize(
    attributes: Attributes,
    x: Tensor,
    _region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode, places = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    if sizes is not None:
        size = _numbers(sizes)[2:]
    elif scales is not None:
        size = [int(edge * factor) for edge, factor in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    if mode == "nearest":
        return F.interpolate(x, size, mode="nearest")
    kind = {"linear": ("linear", "bilinear", "trilinear")[x.dim() - 3], "cubic": "bicubic"}[mode]
    return F.interpolate(x, size, mode=kind, align_corners=places == "align_corners")


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, attributes["blocksize"])
    n, channels, height, width = x.shape
    block = attributes["blocksize"]
    parts = x.reshape(n, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, channels // block**2, height * block, width * block)


def _space_to_depth(x: Tensor, block: int) -> Tensor:
    n, channels, height, width = x.shape
    parts = x.reshape(n, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, channels * block**2, height // block, width // block)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def fold(_: Attributes, *parts: Tensor) -> Tensor:
        result = parts[0]
        for part in parts[1:]:
            result = function(result, part)
        return result

    return fold


def _each(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator without attributes."""
    return lambda _, *tensors: function(*tensors)


OPERATORS: dict[str, Callable[..., Result]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _each(torch.matmul),
    "Einsum": lambda attributes, *parts: torch.einsum(attributes["equation"], *parts),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _each(lambda x: x.mean(_spatial(x), keepdim=True)),
    "GlobalMaxPool": _each(lambda x: x.amax(_spatial(x), keepdim=True)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceProd": _reduce(_product),
    "Add": _each(torch.add),
    "Sub": _each(torch.sub),
    "Mul": _each(torch.mul),
    "Div": _divide,
    "Pow": _each(torch.pow),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Sum": _fold(torch.add),
    "Abs": _each(torch.abs),
    "Neg": _each(torch.neg),
    "Sqrt": _each(torch.sqrt),
    "Reciprocal": _each(torch.reciprocal),
    "Exp": _each(torch.exp),
    "Log": _each(torch.log),
    "Erf": _each(torch.erf),
    "Sin": _each(torch.sin),
    "Cos": _each(torch.cos),
    "Tanh": _each(torch.tanh),
    "Floor": _each(torch.floor),
    "Ceil": _each(torch.ceil),
    "Sign": _each(torch.sign),
    "Sigmoid": _each(torch.sigmoid),
    "Softplus": _each(F.softplus),
    "Softsign": _each(F.softsign),
    "Mish": _each(F.mish),
    "Relu": _each(torch.relu),
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Elu": lambda attributes, x: F.elu(x, attributes.get("alpha", 1.0)),
    "Celu": lambda attributes, x: F.celu(x, attributes.get("alpha", 1.0)),
    "Selu": _each(F.selu),
    "PRelu": _prelu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _each(F.hardswish),
    "Gelu": _gelu,
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
    "LogSoftmax": lambda attributes, x: x.log_softmax(attributes.get("axis", -1)),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Tile": lambda _, x, repeats: x.repeat(_numbers(repeats)),
    "Pad": _pad,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": lambda attributes, x: _space_to_depth(x, attributes["blocksize"]),
    "Trilu": _trilu,
    "CumSum": lambda _, x, axis: x.cumsum(int(axis)),
    "Where": _where,
    "Equal": _each(torch.eq),
    "Greater": _each(torch.gt),
    "GreaterOrEqual": _each(torch.ge),
    "Less": _each(torch.lt),
    "LessOrEqual": _each(torch.le),
    "And": _each(torch.logical_and),
    "Or": _each(torch.logical_or),
    "Not": _each(torch.logical_not),
    "IsNaN": _each(torch.isnan),
    "Cast": lambda attributes, x: x.to(TYPES[attributes["to"]]),
    "Shape": _shape,
    "Size": _each(lambda x: torch.tensor(x.numel())),
    "Range": _each(lambda start, end, step: torch.arange(start.item(), end.item(), step.item())),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": _each(lambda x: x),
    "Dropout": _each(lambda x, *_: x),
}
