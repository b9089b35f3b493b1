"""Linear layers and 1x1 convolutions become two thinner ones.

Source: Eckart & Young (1936): the truncated SVD is the best fit of its rank in the Frobenius norm. As layers of a
network: Denton, Zaremba, Bruna, LeCun & Fergus (2014), "Exploiting Linear Structure Within Convolutional Networks".
"""

import torch
from torch import Tensor, nn

from mlites.compression.factorization.candidates import Candidate
from mlites.compression.factorization.parts import check_plain, convolution, linear
from mlites.compression.factorization.ranks import Choice, rank_grid


def factorize_linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Approximate the weight by ``up @ down``; the bias moves to ``up``.

    Args:
        layer: weight of shape (out, in); left unchanged.
        rank: inner width r, 1 to min(out, in).

    Returns:
        ``down`` then ``up``: (..., in) -> (..., r) -> (..., out).

    Raises:
        ValueError: rank outside its range.
    """
    up, down = _split(layer.weight, rank)
    return nn.Sequential(linear(down), linear(up, layer.bias))


def factorize_pointwise(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """The same for a 1x1 convolution; a stride goes to the first part, so that the second has less to do.

    Args:
        layer: weight of shape (out, in, 1, 1), one group; left unchanged.
        rank: inner channels r, 1 to min(out, in).

    Returns:
        (n, in, height, width) -> (n, r, ...) -> (n, out, ...).

    Raises:
        ValueError: rank outside its range, or another kernel.
    """
    if layer.kernel_size != (1, 1):
        raise ValueError(f"kernel must be 1x1, got {layer.kernel_size[0]}x{layer.kernel_size[1]}")
    padding = check_plain(layer)
    up, down = (part[:, :, None, None] for part in _split(layer.weight[:, :, 0, 0], rank))
    stride = layer.stride[0], layer.stride[1]
    return nn.Sequential(convolution(down, stride=stride, padding=padding), convolution(up, layer.bias))


def svd_choices(candidate: Candidate) -> list[Choice]:
    """What each rank costs and keeps, for a layer that mixes channels alone."""
    weight = candidate.layer.weight.detach().double().flatten(1)
    squares = torch.linalg.svdvals(weight).square().cumsum(0)
    positions = sum(call.positions_written for call in candidate.calls)
    choices = []
    for rank in rank_grid(len(squares)):
        parameters = rank * sum(weight.shape)
        choices.append(Choice((rank,), parameters * positions, parameters, float(squares[rank - 1] / squares[-1])))
    return choices


def _split(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(out, in) -> (out, r) and (r, in), the singular values split evenly so that both train alike."""
    limit = min(weight.shape)
    if not 1 <= rank <= limit:
        raise ValueError(f"rank must be 1 to {limit} for weight {tuple(weight.shape)}, got {rank}")
    u, s, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (root[:, None] * vh[:rank]).to(weight.dtype)
