"""Multilayer perceptron for tables and small images."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn


class MLPClassifier(nn.Module):
    """Linear layers with ReLU between them; an image is flattened first."""

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int], classes_count: int) -> None:
        super().__init__()
        widths = [prod(input_shape), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.output = nn.Linear(widths[-1], classes_count)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, *input_shape) -> logits (n, classes)."""
        values = inputs.flatten(1) if inputs.dim() > 2 else inputs
        for layer in self.hidden:
            values = layer(values).relu()
        logits: Tensor = self.output(values)
        return logits
