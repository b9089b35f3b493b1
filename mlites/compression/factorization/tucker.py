"""A convolution becomes three: to fewer channels, the kernel between these, and back.

Source: Kim, Park, Yoo, Choi, Yang & Shin (2016), "Compression of Deep Convolutional Neural Networks for Fast and Low
Power Mobile Applications": Tucker-2, along the two channel axes alone.
"""

import torch
from torch import nn

from mlites.compression.factorization.candidates import Candidate
from mlites.compression.factorization.parts import check_plain, convolution
from mlites.compression.factorization.ranks import Choice, rank_grid

ITERATIONS = 100
TOLERANCE = 1e-7  # change of the relative error at which the fit has settled


def factorize_tucker(layer: nn.Conv2d, rank_in: int, rank_out: int) -> nn.Sequential:
    """Fit a core between two bases of channels (higher-order orthogonal iteration).

    Args:
        layer: weight (out, in, height, width), one group; left unchanged.
        rank_in: channels that the core reads, 1 to in.
        rank_out: channels that the core writes, 1 to out.

    Returns:
        1x1 (in -> rank_in), then the core with the layer's kernel, stride, padding and dilation, then 1x1
        (rank_out -> out) with its bias.

    Raises:
        ValueError: a rank outside its range.
    """
    import tensorly  # takes a second
    from tensorly.decomposition import partial_tucker

    padding = check_plain(layer)
    weight = layer.weight.detach()
    for name, rank, limit in (("rank_in", rank_in, weight.shape[1]), ("rank_out", rank_out, weight.shape[0])):
        if not 1 <= rank <= limit:
            raise ValueError(f"{name} must be 1 to {limit} for weight {tuple(weight.shape)}, got {rank}")
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, (basis_out, basis_in)), _ = partial_tucker(
            weight.double(), rank=[rank_out, rank_in], modes=[0, 1], n_iter_max=ITERATIONS, tol=TOLERANCE
        )
    basis_out, core, basis_in = (part.to(weight.dtype) for part in (basis_out, core, basis_in))
    stride, dilation = (layer.stride[0], layer.stride[1]), (layer.dilation[0], layer.dilation[1])
    return nn.Sequential(
        convolution(basis_in.T[:, :, None, None]),
        convolution(core, stride=stride, padding=padding, dilation=dilation),
        convolution(basis_out[:, :, None, None], layer.bias),
    )


def tucker_choices(candidate: Candidate) -> list[Choice]:
    """What each pair of ranks (in, out) costs and at least keeps.

    In the bases of the higher-order SVD the core of lower ranks is a corner of the full one, whose squared norm they
    keep; the iteration starts there and only improves.
    """
    weight = candidate.layer.weight.detach().double()
    channels_out, channels_in, height, width = weight.shape
    unfolded = [weight.transpose(0, axis).flatten(1) for axis in (0, 1)]
    bases = [torch.linalg.eigh(one @ one.T).eigenvectors.flip(1) for one in unfolded]
    core = torch.einsum("oihw,or,is->rshw", weight, *bases)
    corners = core.square().sum((2, 3)).cumsum(0).cumsum(1)
    read = sum(call.positions_read for call in candidate.calls)
    written = sum(call.positions_written for call in candidate.calls)
    choices = []
    for rank_in in rank_grid(channels_in):
        for rank_out in rank_grid(channels_out):
            first, middle, last = channels_in * rank_in, rank_in * rank_out * height * width, rank_out * channels_out
            macs = first * read + (middle + last) * written
            energy = float(corners[rank_out - 1, rank_in - 1] / corners[-1, -1])
            choices.append(Choice((rank_in, rank_out), macs, first + middle + last, min(energy, 1.0)))
    return choices
