"""Layers made of given weights: what a factorized layer is built from."""

import torch
from torch import Tensor, nn

Pair = tuple[int, int]


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution with this weight (out, in / groups, height, width) and bias (out,), both copied."""
    channels_out, channels_in, *kernel = weight.shape
    layer = nn.Conv2d(
        channels_in * groups,
        channels_out,
        (kernel[0], kernel[1]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",  # draws no initial weights
    )
    _fill_(layer, weight, bias)
    return layer


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with this weight (out, in) and bias (out,), both copied."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    _fill_(layer, weight, bias)
    return layer


def padding_of(layer: nn.Conv2d) -> Pair | None:
    """Zeros added on each side of height and width; None where the two sides of an edge differ ("same", even kernel).

    >>> padding_of(nn.Conv2d(1, 1, 3, padding="same", dilation=2)), padding_of(nn.Conv2d(1, 1, 2, padding="same"))
    ((2, 2), None)
    """
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        whole = [step * (edge - 1) for step, edge in zip(layer.dilation, layer.kernel_size, strict=True)]
        return None if any(total % 2 for total in whole) else (whole[0] // 2, whole[1] // 2)
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def check_plain(layer: nn.Conv2d) -> Pair:
    """Padding of a convolution that can be split into parts.

    Raises:
        ValueError: it is grouped, or pads with something else than as many zeros on both sides.
    """
    padding = padding_of(layer)
    if layer.groups != 1 or layer.padding_mode != "zeros" or padding is None:
        raise ValueError(f"the convolution must have one group and pad evenly with zeros, got {layer}")
    return padding


def _fill_(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
