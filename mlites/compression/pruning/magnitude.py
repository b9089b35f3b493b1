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


def magnitude_masks(module: nn.Module, amount: float) -> dict[str, Tensor]:
    """Where the weights stay when the fraction ``amount`` goes; of equal magnitudes, the earlier layer's go first.

    Args:
        module: read alone.
        amount: fraction of the weights in [0, 1); weights that are zero already count.

    Returns:
        Parameter name -> bool tensor of its shape.
    """
    weights = prunable_weights(module)
    kept = largest(torch.cat([weight.flatten() for weight in weights.values()]), amount)
    parts = torch.split(kept, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def largest(weights: Tensor, amount: float) -> Tensor:
    """Mask (n,) of the weights (n,) that stay when the fraction ``amount`` goes; of equal ones the first goes first.

    >>> largest(torch.tensor([3.0, -1.0, 0.0, 2.0]), 0.5)
    tensor([ True, False, False,  True])
    """
    mask = torch.ones_like(weights, dtype=torch.bool)
    mask[weights.abs().argsort(stable=True)[: round(amount * len(weights))]] = False
    return mask


def apply_masks_(module: nn.Module, masks: dict[str, Tensor]) -> None:
    """Zero the weights whose mask is False."""
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).masked_fill_(~mask, 0.0)


def prune_magnitude(module: nn.Module, amount: float) -> tuple[nn.Module, dict[str, float]]:
    """A copy without the fraction ``amount`` of its weights, and how sparse it is: weights, zeros, sparsity.

    Raises:
        ValueError: amount outside (0, 1).
    """
    if not 0 < amount < 1:
        raise ValueError(f"amount must be above 0 and below 1, got {amount}")
    pruned = copy.deepcopy(module)
    apply_masks_(pruned, magnitude_masks(pruned, amount))
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
