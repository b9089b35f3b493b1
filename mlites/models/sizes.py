"""The sizes of layers that compression changed: recorded with a model, restored before its weights are loaded."""

from typing import Any

import torch
from torch import nn

from mlites.errors import InputError

LARGEST_SIZE = 1 << 20

# kind -> (class, names in the record -> attributes of the layer)
KINDS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "linear": (nn.Linear, {"in": "in_features", "out": "out_features"}),
    "conv1d": (nn.Conv1d, {"in": "in_channels", "out": "out_channels", "groups": "groups"}),
    "conv2d": (nn.Conv2d, {"in": "in_channels", "out": "out_channels", "groups": "groups"}),
    "conv_transpose2d": (nn.ConvTranspose2d, {"in": "in_channels", "out": "out_channels", "groups": "groups"}),
    "batchnorm1d": (nn.BatchNorm1d, {"features": "num_features"}),
    "batchnorm2d": (nn.BatchNorm2d, {"features": "num_features"}),
    "groupnorm": (nn.GroupNorm, {"channels": "num_channels", "groups": "num_groups"}),
    "layernorm": (nn.LayerNorm, {"shape": "normalized_shape"}),
    "prelu": (nn.PReLU, {"features": "num_parameters"}),
}


def layer_sizes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Sizes of every layer of a known kind, keyed by dotted name."""
    found: dict[str, dict[str, Any]] = {}
    for name, layer in module.named_modules():
        for kind, (layer_class, attributes) in KINDS.items():
            if type(layer) is layer_class:
                sizes = {key: getattr(layer, attribute) for key, attribute in attributes.items()}
                found[name] = {"kind": kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}}
    return found


def changed_sizes(module: nn.Module, original: nn.Module) -> dict[str, dict[str, Any]]:
    """Sizes of the layers in which a module differs from the one its architecture builds."""
    before = layer_sizes(original)
    return {name: sizes for name, sizes in layer_sizes(module).items() if before.get(name) != sizes}


def restore_sizes_(module: nn.Module, layers: dict[str, dict[str, Any]]) -> None:
    """Give layers the recorded sizes; their weights move to the meta device, to be filled by the caller.

    Raises:
        InputError: a record names no layer of the module, another kind, or an impossible size.
    """
    for name, record in layers.items():
        kind, sizes = record.get("kind"), {key: value for key, value in record.items() if key != "kind"}
        if not isinstance(kind, str) or kind not in KINDS:
            raise InputError(f"layer {name[:80]!r}: kind must be one of {', '.join(KINDS)}, got {str(kind)[:40]!r}")
        layer_class, attributes = KINDS[kind]
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise InputError(f"layer {name[:80]!r} has a recorded size but is not part of the architecture") from None
        if type(layer) is not layer_class:
            raise InputError(f"layer {name!r} is {type(layer).__name__} in the architecture, {kind} in the record")
        if set(sizes) != set(attributes):
            raise InputError(f"layer {name!r}: sizes must be {', '.join(attributes)}, got {', '.join(sizes)[:80]}")
        for key, value in sizes.items():
            numbers = value if isinstance(value, list) and 1 <= len(value) <= 4 and key == "shape" else [value]
            if not all(type(number) is int and 1 <= number <= LARGEST_SIZE for number in numbers):
                raise InputError(f"layer {name!r}: {key} must be 1 to {LARGEST_SIZE}, got {str(value)[:40]}")
            setattr(layer, attributes[key], tuple(value) if key == "shape" else value)
        _resize_(name, layer)


def _resize_(name: str, layer: nn.Module) -> None:
    """Empty weights on the meta device in the shapes that the layer's attributes imply."""
    shapes: dict[str, tuple[int, ...]]
    if isinstance(layer, nn.Linear):
        shapes = {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)}
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
            raise InputError(f"layer {name!r}: {layer.groups} groups do not divide its channels")
        first, second = layer.out_channels, layer.in_channels
        if isinstance(layer, nn.ConvTranspose2d):
            first, second = second, first
        shapes = {"weight": (first, second // layer.groups, *layer.kernel_size), "bias": (layer.out_channels,)}
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,))
    elif isinstance(layer, nn.GroupNorm):
        if layer.num_channels % layer.num_groups:
            raise InputError(f"layer {name!r}: {layer.num_groups} groups do not divide {layer.num_channels} channels")
        shapes = dict.fromkeys(("weight", "bias"), (layer.num_channels,))
    elif isinstance(layer, nn.LayerNorm):
        shapes = dict.fromkeys(("weight", "bias"), layer.normalized_shape)
    elif isinstance(layer, nn.PReLU):
        shapes = {"weight": (layer.num_parameters,)}
    else:
        raise TypeError(f"no shapes are known for {type(layer).__name__}")
    for attribute, shape in shapes.items():
        old = getattr(layer, attribute, None)
        if old is None:
            continue
        new = torch.empty(shape, dtype=old.dtype, device="meta")
        setattr(layer, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
