"""A convolution becomes four: 1x1, a column and a row for each channel, 1x1.

Source: Lebedev, Ganin, Rakhuba, Oseledets & Lempitsky (2015), "Speeding-up Convolutional Neural Networks Using
Fine-tuned CP-Decomposition". The fit is held stable as in Phan et al. (2020), "Stable Low-Rank Tensor Decomposition for
Compression of Convolutional Neural Network": without a penalty on their norms, components grow that cancel each other.
"""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from mlites.compression.factorization.candidates import Candidate
from mlites.compression.factorization.parts import check_plain, convolution
from mlites.compression.factorization.ranks import WIDTH, Choice, that_save

SWEEPS = 300
TOLERANCE = 1e-5  # change of the missed fraction of the squared norm at which the fit has settled
PENALTY = 1e-4  # on the factors, for a weight of norm 1; fits are as good, their components 4 times smaller

Factors = tuple[Tensor, Tensor, Tensor, Tensor]


def factorize_cp(layer: nn.Conv2d, rank: int, seed: int = 0) -> nn.Sequential:
    """Replace a convolution by its fit of ``rank`` components.

    Args:
        layer: weight (out, in, height, width), one group; left unchanged.
        rank: channels between the parts, at least 1.
        seed: of the start of the fit.

    Returns:
        1x1 (in -> rank), height x 1 and 1 x width, each channel by itself, then 1x1 (rank -> out) with the bias.

    Raises:
        ValueError: rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    padding = check_plain(layer)
    weight = layer.weight.detach()
    outs, ins, columns, rows = (factor.to(weight.dtype) for factor in fit_cp(weight, rank, seed))
    down = convolution(
        columns.T[:, None, :, None],
        stride=(layer.stride[0], 1),
        padding=(padding[0], 0),
        dilation=(layer.dilation[0], 1),
        groups=rank,
    )
    across = convolution(
        rows.T[:, None, None, :],
        stride=(1, layer.stride[1]),
        padding=(0, padding[1]),
        dilation=(1, layer.dilation[1]),
        groups=rank,
    )
    first, last = convolution(ins.T[:, :, None, None]), convolution(outs[:, :, None, None], layer.bias)
    return nn.Sequential(first, down, across, last)


def fit_cp(weight: Tensor, rank: int, seed: int) -> Factors:
    """Fit a sum of ``rank`` products of vectors by alternating least squares.

    Args:
        weight: (out, in, height, width).
        rank: number of products.
        seed: of those start vectors that the singular vectors do not provide.

    Returns:
        Factors (out, r), (in, r), (height, r), (width, r) in float64, the norm of each product split evenly.
    """
    tensor = weight.detach().double()
    norm = tensor.norm()
    tensor, factors, error = tensor / norm, _start(tensor, rank, seed), 2.0
    for _ in range(SWEEPS):
        before = error
        factors, error = sweep(tensor, factors)
        if abs(before - error) < TOLERANCE:
            break
    norms = [factor.norm(dim=0).clamp_min(1e-30) for factor in factors]
    share = (norm * torch.stack(norms).prod(0)) ** 0.25
    outs, ins, columns, rows = (factor / own * share for factor, own in zip(factors, norms, strict=True))
    return outs, ins, columns, rows


def sweep(tensor: Tensor, factors: Factors) -> tuple[Factors, float]:
    """Solve for each factor once, the other three held.

    The same as a general routine's sweep, but the sums over ``in`` and ``out``, nearly all of the work, are products of
    matrices and shared by the factors: more than ten times as fast.

    Args:
        tensor: (out, in, height, width) of norm 1.
        factors: as of ``fit_cp``.

    Returns:
        The new factors, and the squared norm of what they miss.
    """
    outs, ins, columns, rows = factors
    kernels = columns[:, None] * rows  # (height, width, r)
    seen = tensor.permute(0, 2, 3, 1) @ ins  # (out, height, width, r)
    outs = _solve((seen * kernels).sum((1, 2)), ins, columns, rows)
    seen = tensor.permute(1, 2, 3, 0) @ outs  # (in, height, width, r)
    ins = _solve((seen * kernels).sum((1, 2)), outs, columns, rows)
    seen = (seen * ins[:, None, None]).sum(0)  # (height, width, r)
    columns = _solve((seen * rows).sum(1), outs, ins, rows)
    target = (seen * columns[:, None]).sum(0)  # (width, r)
    rows = _solve(target, outs, ins, columns)
    kept = 2 * (target * rows).sum() - (_gram(outs, ins, columns) * (rows.T @ rows)).sum()
    return (outs, ins, columns, rows), 1 - float(kept)


def kept_energy(weight: Tensor, factors: Factors) -> float:
    """Fraction of the weight's squared norm that the factors keep."""
    tensor = weight.detach().double()
    missed = (tensor - torch.einsum("or,ir,hr,wr->oihw", *factors)).square().sum()
    return float(1 - missed / tensor.square().sum())


def cp_choices(candidate: Candidate) -> list[Choice]:
    """What each rank costs and at most keeps, multiples of 8 as far as they save anything.

    No closed form gives the energy, and a fit at every rank takes long. But a sum of r products, seen as a matrix of
    (out, height) by (in, width) or of (out, width) by (in, height), has rank r at most: so it keeps no more than the
    best of that rank.
    """
    weight = candidate.layer.weight.detach().double()
    channels_out, channels_in, height, width = weight.shape
    squares = [
        torch.linalg.svdvals(weight.permute(order).reshape(rows, -1)).square().cumsum(0)
        for order, rows in (((0, 2, 1, 3), channels_out * height), ((0, 3, 1, 2), channels_out * width))
    ]
    choices = []
    for rank in range(WIDTH, min(channels_out, channels_in) * height * width + 1, WIDTH):
        bounds = [float(one[min(rank, len(one)) - 1] / one[-1]) for one in squares]
        macs = sum(
            channels_in * call.positions_read
            + height * call.written[0] * call.read[1]
            + (width + channels_out) * call.positions_written
            for call in candidate.calls
        )
        parameters = rank * (channels_out + channels_in + height + width)
        choices.append(Choice((rank,), rank * macs, parameters, min(bounds)))
    return that_save(choices, candidate.whole)


def cp_by_energy(candidate: Candidate, choices: Sequence[Choice], energy: float, seed: int) -> Choice | None:
    """The cheapest choice whose fit keeps this fraction of the energy, if there is one; found by halving."""
    weight = candidate.layer.weight

    def reached(choice: Choice) -> bool:
        if choice.energy < energy:  # the bound
            return False
        return kept_energy(weight, fit_cp(weight, choice.ranks[0], seed)) >= energy

    index = bisect_left(choices, True, key=reached)
    return choices[index] if index < len(choices) else None


def _gram(*factors: Tensor) -> Tensor:
    """Inner products (r, r) of the products of vectors."""
    return torch.stack([factor.T @ factor for factor in factors]).prod(0)


def _solve(target: Tensor, *others: Tensor) -> Tensor:
    """The factor (size, r) whose products with the others come nearest."""
    gram = _gram(*others)
    gram.diagonal().add_(PENALTY)
    solved: Tensor = torch.linalg.solve(gram, target, left=False)
    return solved


def _start(tensor: Tensor, rank: int, seed: int) -> Factors:
    """Leading singular vectors of each axis, filled up with random ones where the rank is higher than the axis long."""
    generator = Generator().manual_seed(seed)

    def vectors(axis: int) -> Tensor:
        unfolded = tensor.transpose(0, axis).flatten(1)
        leading = torch.linalg.svd(unfolded, full_matrices=False).U[:, :rank]
        more = torch.randn(len(unfolded), rank - leading.shape[1], generator=generator, dtype=tensor.dtype)
        return torch.cat([leading, more.to(tensor.device)], 1)

    return vectors(0), vectors(1), vectors(2), vectors(3)
