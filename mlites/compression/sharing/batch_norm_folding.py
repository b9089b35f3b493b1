"""Batch normalization folded into the layer before it, so that what this layer shares is what the exported file holds.

An export multiplies each output channel's weights by its normalization's scale: values shared before that would differ
from channel to channel after it.

Source: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 3.2.
"""

import torch
from torch import Tensor, fx, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def fold_batch_norms_(module: nn.Module) -> dict[str, Norm]:
    """Move scales and means of normalizations that directly follow a layer into it; the network's answers stay.

    A folded normalization stays in its place as one that only adds its bias. None is folded in a network that cannot be
    traced, or where layer and normalization do not stand alone.

    Returns:
        Name -> each folded normalization.
    """
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # a network may do anything in its code
        return {}
    layers = dict(module.named_modules(remove_duplicate=False))
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    folded = dict[str, Norm]()
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm, layer = layers[str(node.target)], layers[str(before.target)]
        alone = calls.count(node.target) == calls.count(before.target) == 1
        if alone and isinstance(norm, Norm) and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            if norm.running_mean is None or norm.weight is None:
                continue
            _fold_(layer, norm)
            folded[str(node.target)] = norm
    return folded


class Bias(nn.Module):
    """What is left of a folded normalization in training, in which a real one would use each batch's statistics."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.bias = nn.Parameter(norm.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the bias (channels,) to (n, channels, ...)."""
        return inputs + self.bias.view(-1, *[1] * (inputs.dim() - 2))


@torch.no_grad()
def _fold_(layer: nn.Conv1d | nn.Conv2d | nn.Linear, norm: Norm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if layer.bias is not None:
        shift += layer.bias * scale
        layer.bias.zero_()
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    norm.weight.fill_(1)
    norm.bias.copy_(shift)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)  # the root of it and eps is 1
