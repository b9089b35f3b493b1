"""N:M sparsity: of every m neighbouring weights that meet in one sum, the n largest stay.

Source: Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu & Micikevicius (2021), "Accelerating Sparse Deep Neural
Networks": 2:4, the pattern that sparse tensor cores compute at twice the rate.
"""

import torch
from torch import Tensor, nn

from mlites.compression.pruning.magnitude import prunable_weights
from mlites.errors import InputError

INPUT_AXIS = {nn.Linear: 1, nn.Conv1d: 1, nn.Conv2d: 1, nn.ConvTranspose1d: 0, nn.ConvTranspose2d: 0}


def n_m_masks(module: nn.Module, n: int, m: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Where the weights stay: n of every m along the inputs of linear layers and the input channels of convolutions.

    Args:
        module: read alone.
        n: weights kept of every ``m``; of equal magnitudes the last stay.
        m: neighbours that are looked at together.

    Returns:
        Parameter name -> bool tensor of its shape, and parameter name -> reason for those that keep all weights.

    Raises:
        InputError: no layer can take the pattern; each is named with its reason.
        ValueError: n is not 1 to m - 1.
    """
    if not 1 <= n < m:
        raise ValueError(f"n must be 1 to {m - 1} for m {m}, got {n}")
    axes = {
        f"{name}.weight".removeprefix("."): next(
            (axis for kind, axis in INPUT_AXIS.items() if isinstance(layer, kind)), None
        )
        for name, layer in module.named_modules()
    }
    masks, whole = {}, {}
    for name, weight in prunable_weights(module).items():
        axis = axes.get(name)
        if axis is None:
            whole[name] = "the pattern is for linear layers and convolutions"
        elif weight.shape[axis] % m:
            whole[name] = f"{weight.shape[axis]} inputs are no multiple of {m}"
        else:
            masks[name] = _pattern(weight.movedim(axis, -1), n, m).movedim(-1, axis)
    if not masks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(whole.items())[:3])
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        raise InputError(f"no layer can take the pattern {n}:{m}: {reasons}{more}; use method: magnitude or structured")
    return masks, whole


def _pattern(weight: Tensor, n: int, m: int) -> Tensor:
    """Mask of a weight (..., inputs): of every m inputs in a row, the n largest."""
    groups = weight.abs().reshape(-1, m)
    smallest = groups.argsort(dim=1, stable=True)[:, : m - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, smallest, False).view(weight.shape)
