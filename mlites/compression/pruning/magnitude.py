"""Magnitude pruning: the smallest weights of the whole network become zero.

Source: Han, Pool, Tran & Dally (2015), "Learning both Weights and Connections for Efficient Neural Networks"; one
threshold over all layers, as in Frankle & Carbin (2019).
"""

import copy

import torch
from torch import Tensor, nn


def prunable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Kernels and matrices by name; biases and normalization have too few weights to be worth a zero."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.dim() > 1}


def prune_magnitude(module: nn.Module, amount: float) -> tuple[nn.Module, dict[str, float]]:
    """Zero the fraction ``amount`` of all weights; of equal magnitudes, the earlier layer's go first.

    Args:
        module: left unchanged.
        amount: fraction of the weights in (0, 1); weights that are zero already count.

    Returns:
        The pruned copy, and facts: weights, zeros, sparsity.

    Raises:
        ValueError: amount outside its range.
    """
    if not 0 < amount < 1:
        raise ValueError(f"amount must be above 0 and below 1, got {amount}")
    pruned = copy.deepcopy(module)
    weights = prunable_weights(pruned)
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    keep[magnitudes.argsort(stable=True)[: round(amount * len(magnitudes))]] = False
    parts = torch.split(keep, [weight.numel() for weight in weights.values()])
    for weight, mask in zip(weights.values(), parts, strict=True):
        weight.mul_(mask.view_as(weight))
    return pruned, sparsity(pruned)


def zero_masks(module: nn.Module) -> dict[str, Tensor]:
    """For each weight that has zeros, where it is not zero: the masks that keep a pruned network pruned in training."""
    masks = {name: weight != 0 for name, weight in prunable_weights(module).items()}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def sparsity(module: nn.Module) -> dict[str, float]:
    """How many weights there are, how many are zero, and their ratio."""
    weights = prunable_weights(module).values()
    total, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    return {"weights": total, "zeros": zeros, "sparsity": zeros / total}
