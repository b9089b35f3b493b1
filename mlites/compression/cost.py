"""What a network costs: parameters, and multiply-accumulates of one row."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


def count_cost(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Parameters and multiply-accumulates of convolutions and linear layers for one row of ``input_shape``.

    >>> count_cost(nn.Linear(8, 3), (8,))
    {'parameters': 27, 'macs': 24}
    """
    macs = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            macs += output.numel() * layer.in_channels // layer.groups * prod(layer.kernel_size)
        elif isinstance(layer, nn.ConvTranspose2d):
            macs += _inputs[0].numel() * layer.out_channels // layer.groups * prod(layer.kernel_size)

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, kinds)]
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *input_shape))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return {"parameters": sum(parameter.numel() for parameter in module.parameters()), "macs": macs}
