"""Taylor importance: what the loss would change, to first order, if a weight were zero.

Source: Molchanov, Mallya, Tyree, Frosio & Kautz (2019), "Importance Estimation for Neural Network Pruning": the square
of gradient times weight, averaged over mini-batches; a channel's is the sum over its weights (equation 8).
"""

import copy

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mlites.compression.pruning.magnitude import prunable_weights

ROWS = 2048  # read at most: the order of the channels settles long before


def taylor_scores(module: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int, seed: int) -> dict[str, Tensor]:
    """Mean over mini-batches of ``(gradient * weight) ** 2`` for each single weight.

    Args:
        module: left unchanged; normalization uses its running statistics.
        inputs: rows to learn from, (n, ...); more than 2048 are sampled.
        labels: (n,).
        batch_size: rows of one gradient.
        seed: chooses rows and their order.

    Returns:
        Parameter name -> tensor of its shape, for kernels and matrices.
    """
    trial = copy.deepcopy(module).eval().requires_grad_(True)
    rows = torch.randperm(len(labels), generator=Generator().manual_seed(seed))[:ROWS]
    weights = {name: trial.get_parameter(name) for name in prunable_weights(trial)}
    scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    batches = torch.split(rows, batch_size)
    for batch in batches:
        loss = F.cross_entropy(trial(inputs[batch]), labels[batch])
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                scores[name] += (gradient * weight.detach()).square() / len(batches)
    return {name: score.detach() for name, score in scores.items()}
