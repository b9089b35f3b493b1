"""Architecture options become a module, with weights drawn from a seed."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from mlites import recipe
from mlites.errors import InputError
from mlites.models import lenet
from mlites.models.convnet import ConvNetClassifier
from mlites.models.efficientnet import EfficientNetClassifier
from mlites.models.factory import call_factory
from mlites.models.mlp import MLPClassifier
from mlites.models.mobilenet_v2 import MobileNetV2Classifier
from mlites.models.mobilenet_v3 import MobileNetV3Classifier
from mlites.models.resnet import ResNetClassifier
from mlites.models.separable import SeparableClassifier

Checked = TypeVar("Checked")


def build_model(
    architecture: recipe.Architecture | dict[str, Any],
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
    channels, _, _ = _image_shape("resnet", input_shape)
    return ResNetClassifier(channels, checked.depth, checked.width, classes_count)


def _lenet(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    _checked(recipe.LeNet, options)
    return lenet.LeNetClassifier(*_image_shape("lenet", input_shape, lenet.LEAST_EDGE), classes_count)


def _convnet(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    checked = _checked(recipe.ConvNet, options)
    shape = _image_shape("convnet", input_shape)
    kernels = checked.kernels or (3,) * len(checked.channels)
    separable_from = checked.separable_from or len(checked.channels)
    return ConvNetClassifier(
        shape, checked.channels, checked.strides, kernels, checked.head, separable_from, classes_count
    )


def _separable(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    one = _checked(recipe.Separable, options)
    shape = _image_shape(one.family, input_shape)
    return SeparableClassifier(shape, one.width, one.depth, one.resolution, classes_count)


def _mobilenet_v2(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    one = _checked(recipe.MobileNetV2, options)
    shape = _image_shape(one.family, input_shape)
    return MobileNetV2Classifier(shape, one.width, one.depth, one.resolution, classes_count)


def _mobilenet_v3(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    one = _checked(recipe.MobileNetV3, options)
    shape = _image_shape(one.family, input_shape)
    return MobileNetV3Classifier(shape, one.variant, one.width, one.depth, one.resolution, classes_count)


def _efficientnet(options: dict[str, Any], input_shape: tuple[int, ...], classes_count: int) -> nn.Module:
    one = _checked(recipe.EfficientNet, options)
    shape = _image_shape(one.family, input_shape)
    return EfficientNetClassifier(shape, one.width, one.depth, one.resolution, one.compound, classes_count)


def _factory(options: dict[str, Any], _input_shape: tuple[int, ...], _classes_count: int) -> nn.Module:
    path, keywords = options.get("factory"), options.get("options", {})
    if not isinstance(path, str) or not isinstance(keywords, dict):
        raise InputError("architecture family factory needs factory: package.module:function and options: a mapping")
    return call_factory(path, keywords)


def _image_shape(family: str, input_shape: tuple[int, ...], least_edge: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of rows that are images and not too small."""
    if len(input_shape) != 3:
        raise InputError(f"{family} needs images (channels, height, width), got rows of shape {input_shape}; use mlp")
    channels, height, width = input_shape
    if min(height, width) < least_edge:
        raise InputError(
            f"{family} needs images of {least_edge}x{least_edge} pixels at least, got {height}x{width}; "
            f"use resnet or convnet, which take any"
        )
    return channels, height, width


def _checked(kind: type[Checked], options: dict[str, Any]) -> Checked:
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(("architecture", *(str(part) for part in fault["loc"])))
        raise InputError(f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from None


FAMILIES: dict[str, Callable[[dict[str, Any], tuple[int, ...], int], nn.Module]] = {
    "mlp": _mlp,
    "lenet": _lenet,
    "resnet": _resnet,
    "convnet": _convnet,
    "separable": _separable,
    "mobilenet-v2": _mobilenet_v2,
    "mobilenet-v3": _mobilenet_v3,
    "efficientnet": _efficientnet,
    "factory": _factory,
}
