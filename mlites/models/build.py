"""Architecture options become a module, with weights drawn from a seed."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mlites import recipe
from mlites.errors import InputError
from mlites.models.factory import call_factory
from mlites.models.mlp import MLPClassifier
from mlites.models.resnet import ResNetClassifier

Checked = TypeVar("Checked")


def build_model(
    architecture: recipe.MLP | recipe.ResNet | dict[str, Any],
    input_shape: Sequence[int],
    classes_count: int,
    seed: int = 0,
) -> nn.Module:
    """Build an untrained network; the same seed gives the same weights.

    Args:
        architecture: options of a family, or the same as found in a model card.
        input_shape: of one row, (channels, height, width) or (features,).
        classes_count: width of the output.
        seed: of the initial weights; the global generator is left as it was.

    Raises:
        InputError: the family is unknown, its options are wrong, or it does not take rows of this shape.
    """
    options = architecture if isinstance(architecture, dict) else architecture.model_dump(mode="json")
    family = options.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"architecture family must be one of {', '.join(FAMILIES)}, got {str(family)[:40]!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[family](options, tuple(input_shape), classes_count)


def _mlp(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    return MLPClassifier(input_shape, _checked(recipe.MLP, options).hidden, classes_count)


def _resnet(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    checked = _checked(recipe.ResNet, options)
    if len(input_shape) != 3:
        raise InputError(f"resnet needs images (channels, height, width), got rows of shape {input_shape}; use mlp")
    return ResNetClassifier(input_shape[0], checked.depth, checked.width, classes_count)


def _factory(options: dict[str, Any], _input_shape: tuple[int, ...], _classes_count: int) -> nn.Module:
    path, keywords = options.get("factory"), options.get("options", {})
    if not isinstance(path, str) or not isinstance(keywords, dict):
        raise InputError("architecture family factory needs factory: package.module:function and options: a mapping")
    return call_factory(path, keywords)


def _checked(kind: type[Checked], options: dict[str, Any]) -> Checked:
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(("architecture", *(str(part) for part in fault["loc"])))
        raise InputError(f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from None


FAMILIES: dict[str, Callable[[dict[str, Any], tuple[int, ...], int], nn.Module]] = {
    "mlp": _mlp,
    "resnet": _resnet,
    "factory": _factory,
}
