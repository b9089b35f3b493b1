"""A convolution becomes a compact one: a kernel for each input channel by itself, then 1x1 between channels.

Source: Howard et al. (2017), "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications". Its
start from a trained layer: Eckart & Young (1936), the best fit of rank 1 for each input channel's kernels.
"""

import torch
from torch import Tensor, nn

from mlites.compression.factorization.candidates import Candidate
from mlites.compression.factorization.parts import check_plain, convolution
from mlites.compression.factorization.ranks import Choice


def separate(layer: nn.Conv2d) -> nn.Sequential:
    """Replace a convolution by the depthwise-separable one nearest to it in the Frobenius norm.

    Each input channel takes part in the two layers alone, so its kernels (out, height x width), as a matrix, are fitted
    by their first singular vectors: the kernel, and its share in every output.

    Args:
        layer: weight (out, in, height, width), one group; left unchanged.

    Returns:
        Depthwise convolution with the layer's kernel, stride, padding and dilation, then 1x1 (in -> out) with its bias.
    """
    padding = check_plain(layer)
    u, s, vh = _singular(layer.weight)
    root = s[:, 0].sqrt()
    kernels = (root[:, None] * vh[:, 0]).reshape(layer.in_channels, 1, *layer.kernel_size)
    shares = (root[:, None] * u[:, :, 0]).T[:, :, None, None]
    depthwise = convolution(
        kernels.to(layer.weight.dtype),
        stride=(layer.stride[0], layer.stride[1]),
        padding=padding,
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.in_channels,
    )
    return nn.Sequential(depthwise, convolution(shares.to(layer.weight.dtype), layer.bias))


def separable_choice(candidate: Candidate) -> Choice:
    """What the one rank, 1 for each input channel, costs and keeps."""
    weight = candidate.layer.weight
    channels_out, channels_in, height, width = weight.shape
    squares = _singular(weight)[1].square()
    parameters = channels_in * (height * width + channels_out)
    macs = parameters * sum(call.positions_written for call in candidate.calls)
    return Choice((1,), macs, parameters, float(squares[:, 0].sum() / squares.sum()))


def _singular(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of each input channel's (out, height x width): (in, out, k), (in, k), (in, k, height x width)."""
    u, s, vh = torch.linalg.svd(weight.detach().double().transpose(0, 1).flatten(2), full_matrices=False)
    return u, s, vh
