"""What compression changed in a network's layers: recorded with a model, restored before its weights are loaded.

A layer has other sizes than the architecture gives it, or a sequence of parts of its own kind stands in its place; then
the record tells all that the parts are built from.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mlites.errors import InputError

LARGEST_SIZE = 1 << 20
LARGEST_KERNEL = 1 << 10  # and stride, padding, dilation
MOST_PARTS = 16
DEEPEST = 8  # sequences within sequences: a layer replaced by parts of which one was replaced again

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
SEQUENTIAL = "sequential"
PAIRS = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}  # the least value of each
PART_FIELDS = {"linear": ("in", "out", "bias"), "conv2d": ("in", "out", *PAIRS, "groups", "bias")}


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
    """Sizes of the layers in which a module differs from what its architecture builds, and parts of replaced ones.

    Raises:
        ValueError: a layer was replaced by a sequence of what is not recorded.
    """
    before, now = layer_sizes(original), dict(module.named_modules())
    changed = {
        name: {"kind": SEQUENTIAL, "parts": _parts(name, sequence)}
        for name in before
        if isinstance(sequence := now.get(name), nn.Sequential)
    }
    within = tuple(f"{name}." for name in changed)
    for name, sizes in layer_sizes(module).items():
        if before.get(name) != sizes and not name.startswith(within):
            changed[name] = sizes
    return changed


def restore_sizes_(module: nn.Module, layers: dict[str, dict[str, Any]]) -> None:
    """Give layers the recorded sizes or parts; their weights are on the meta device, to be filled by the caller.

    Raises:
        InputError: a record names no layer of the module, another kind, or an impossible size.
    """
    known = dict(module.named_modules())
    for name, record in layers.items():
        if name not in known:
            raise InputError(f"layer {name[:80]!r} has a recorded size but is not part of the architecture")
        if record.get("kind") == SEQUENTIAL:
            _restore_parts_(module, name, known[name], record)
        else:
            _restore_sizes_(name, known[name], record)


def _restore_sizes_(name: str, layer: nn.Module, record: dict[str, Any]) -> None:
    kind, sizes = record.get("kind"), {key: value for key, value in record.items() if key != "kind"}
    if not isinstance(kind, str) or kind not in KINDS:
        kinds = ", ".join((*KINDS, SEQUENTIAL))
        raise InputError(f"layer {name[:80]!r}: kind must be one of {kinds}, got {str(kind)[:40]!r}")
    layer_class, attributes = KINDS[kind]
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


def _parts(name: str, sequence: nn.Sequential) -> list[dict[str, Any]]:
    """All that the parts of a sequence are built from."""
    found: list[dict[str, Any]] = []
    for part in sequence:
        if type(part) is nn.Sequential:
            found.append({"kind": SEQUENTIAL, "parts": _parts(name, part)})
        elif type(part) is nn.Linear:
            found.append(
                {"kind": "linear", "in": part.in_features, "out": part.out_features, "bias": part.bias is not None}
            )
        elif type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            pairs = {key: list(getattr(part, key)) for key in PAIRS}
            sizes = {"in": part.in_channels, "out": part.out_channels, "groups": part.groups}
            found.append({"kind": "conv2d", **sizes, **pairs, "bias": part.bias is not None})
        else:
            raise ValueError(f"layer {name!r} was replaced by a sequence with {part}, which is not recorded")
    return found


def _restore_parts_(module: nn.Module, name: str, layer: nn.Module, record: dict[str, Any]) -> None:
    """Put the recorded sequence in the layer's place."""
    kind = next((kind for kind in PART_FIELDS if type(layer) is KINDS[kind][0]), None)
    if kind is None or not name:
        what = type(layer).__name__ if name else "the whole network"
        raise InputError(f"layer {name!r} is {what} in the architecture, which no {SEQUENTIAL} can replace")
    sequence = _build_sequence(name, kind, record, DEEPEST)
    for before, after in pairwise(_leaves(sequence)):
        if before[1] != after[0]:
            raise InputError(f"layer {name!r}: a part gives {before[1]} values, the next one takes {after[0]}")
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, sequence)


def _build_sequence(name: str, kind: str, record: dict[str, Any], depth: int) -> nn.Sequential:
    parts = record.get("parts")
    if set(record) != {"kind", "parts"} or not isinstance(parts, list) or not 1 <= len(parts) <= MOST_PARTS:
        raise InputError(f"layer {name!r}: a {SEQUENTIAL} must have 1 to {MOST_PARTS} parts and nothing else")
    if depth == 0:
        raise InputError(f"layer {name!r}: parts within parts may be {DEEPEST} deep, not deeper")
    built: list[nn.Module] = []
    for part in parts:
        if isinstance(part, dict) and part.get("kind") == SEQUENTIAL:
            built.append(_build_sequence(name, kind, part, depth - 1))
        else:
            built.append(_build_part(name, kind, part))
    return nn.Sequential(*built)


def _build_part(name: str, kind: str, record: Any) -> nn.Module:
    fields = PART_FIELDS[kind]
    if not isinstance(record, dict) or record.get("kind") != kind:
        found = str(record.get("kind") if isinstance(record, dict) else record)[:40]
        raise InputError(f"layer {name!r}: parts must be of kind {kind} or {SEQUENTIAL}, got {found!r}")
    if set(record) != {"kind", *fields}:
        found = ", ".join(key for key in record if key != "kind")[:80]
        raise InputError(f"layer {name!r}: parts of kind {kind} must have {', '.join(fields)}, got {found}")
    for key in fields:
        value, least = record[key], PAIRS.get(key, 1)
        if key == "bias":
            if type(value) is not bool:
                raise InputError(f"layer {name!r}: bias of a part must be true or false, got {str(value)[:40]}")
        elif key in PAIRS:
            if not (
                isinstance(value, list) and len(value) == 2 and all(_within(x, least, LARGEST_KERNEL) for x in value)
            ):
                raise InputError(
                    f"layer {name!r}: {key} of a part must be two numbers from {least} to {LARGEST_KERNEL}, "
                    f"got {str(value)[:40]}"
                )
        elif not _within(value, 1, LARGEST_SIZE):
            raise InputError(f"layer {name!r}: {key} of a part must be 1 to {LARGEST_SIZE}, got {str(value)[:40]}")
    if kind == "linear":
        return nn.Linear(record["in"], record["out"], bias=record["bias"], device="meta")
    if record["in"] % record["groups"] or record["out"] % record["groups"]:
        raise InputError(f"layer {name!r}: {record['groups']} groups do not divide a part's channels")
    return nn.Conv2d(
        record["in"],
        record["out"],
        tuple(record["kernel_size"]),
        stride=tuple(record["stride"]),
        padding=tuple(record["padding"]),
        dilation=tuple(record["dilation"]),
        groups=record["groups"],
        bias=record["bias"],
        device="meta",
    )


def _within(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _leaves(sequence: nn.Sequential) -> Iterator[tuple[int, int]]:
    """Width of input and output of each part, in the order in which they run."""
    for part in sequence.modules():
        if isinstance(part, nn.Linear):
            yield part.in_features, part.out_features
        elif isinstance(part, nn.Conv2d):
            yield part.in_channels, part.out_channels


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
