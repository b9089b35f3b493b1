"""Convolutions one after the other, plain or depthwise-separable: of all networks those with the fewest operators.

Sources: Ioffe & Szegedy (2015), "Batch Normalization" (convolution, normalization, ReLU); Springenberg et al. (2015),
"Striving for Simplicity: The All Convolutional Net" (strides instead of pooling, the mean over the picture at the end);
Howard et al. (2017), "MobileNets" (depthwise, then 1x1).
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn


class ConvBlock(nn.Module):
    """A convolution without bias, normalized and rectified."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride), both rounded up for odd kernels."""
        values: Tensor = self.norm(self.conv(inputs)).relu()
        return values


class ConvNetClassifier(nn.Module):
    """Convolution blocks in a row, then logits from the mean over height and width, or from every position.

    From number ``separable_from`` on, each convolution is a depthwise one and a 1x1.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        kernels: Sequence[int],
        head: Literal["mean", "full"],
        separable_from: int,
        classes_count: int,
    ) -> None:
        super().__init__()
        channels_in, *edges = input_shape
        blocks: list[nn.Module] = []
        for index, (channels_out, stride, kernel) in enumerate(zip(channels, strides, kernels, strict=True)):
            if index >= separable_from:
                blocks.append(ConvBlock(channels_in, channels_in, kernel, stride, groups=channels_in))
                blocks.append(ConvBlock(channels_in, channels_out, 1, 1))
            else:
                blocks.append(ConvBlock(channels_in, channels_out, kernel, stride))
            channels_in = channels_out
            edges = [(edge + 2 * (kernel // 2) - kernel) // stride + 1 for edge in edges]
        self.blocks = nn.Sequential(*blocks)
        self.output: nn.Linear | nn.Conv2d
        if head == "full":  # a convolution over all that is left, as it needs no other layout than those before it
            self.output = nn.Conv2d(channels_in, classes_count, (edges[0], edges[1]))
        else:
            self.output = nn.Linear(channels_in, classes_count)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> logits (n, classes)."""
        values = self.blocks(inputs)
        if isinstance(self.output, nn.Linear):
            values = values.mean((2, 3))
        logits: Tensor = self.output(values).flatten(1)
        return logits
