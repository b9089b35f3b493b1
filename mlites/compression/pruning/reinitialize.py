"""Random re-initialization: what pruning left gets new random weights, the control that any retraining must beat.

Source: Frankle & Carbin (2019), "The Lottery Ticket Hypothesis"; for channels Liu, Sun, Zhou, Huang & Darrell (2019),
"Rethinking the Value of Network Pruning".
"""

import torch
from torch import Generator, Tensor, nn

from mlites.errors import InputError


def reinitialize_(module: nn.Module, untrained: nn.Module, seed: int) -> None:
    """Draw new weights from those of the untrained network, tensor by tensor in a random order.

    Weights that were drawn independently are as random in any other order, whatever law the network's author drew them
    from. Where channels went, kernels and matrices are scaled to the inputs that are left.

    Args:
        module: pruned; its zeros are filled too, so masks must be applied again.
        untrained: the original network with its initial weights.
        seed: of the order.

    Raises:
        InputError: a layer is not part of the original network.
    """
    initial, generator = untrained.state_dict(), Generator().manual_seed(seed)
    drawn = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict(keep_vars=True).items():
        source = initial.get(name)
        if source is None or source.dim() != tensor.dim() or source.numel() < tensor.numel():
            raise InputError(
                f"reinitialize: {name} is not part of the original network; an earlier pass replaced its layer, use "
                f"retrain: fine-tune"
            )
        with torch.no_grad():
            tensor.copy_(_drawn(source, tensor, generator) if name in drawn else _cut(source, tensor))


def _drawn(source: Tensor, like: Tensor, generator: Generator) -> Tensor:
    values = source.flatten()[torch.randperm(source.numel(), generator=generator)[: like.numel()]].view(like.shape)
    return values * (source[0].numel() / like[0].numel()) ** 0.5 if like.dim() > 1 else values


def _cut(source: Tensor, like: Tensor) -> Tensor:
    """Statistics before training are the same for every channel; other buffers keep their size."""
    return source.flatten()[: like.numel()].view(like.shape)
