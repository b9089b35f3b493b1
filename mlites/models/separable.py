"""Depthwise-separable convolutions in a row: each channel filtered alone, then all mixed by a 1x1 convolution.

Source: Howard et al. (2017), "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
table 1. Images below 64 pixels keep their size in the first layers (see ``fit_strides``).
"""

from torch import Tensor, nn

from mlites.models.inverted_residual import ConvNorm
from mlites.models.scaling import fit_resolution, fit_strides, scale_blocks, scale_channels

STEM = 32
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # channels, blocks, stride of the first


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then 1x1, each normalized and rectified."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels_in, channels_in, 3, stride, groups=channels_in, activation=nn.ReLU)
        self.pointwise = ConvNorm(channels_in, channels_out, activation=nn.ReLU)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride), both rounded up."""
        values: Tensor = self.pointwise(self.depthwise(inputs))
        return values


class SeparableClassifier(nn.Module):
    """A 3x3 stem, 13 separable blocks at depth 1, the mean over height and width, one linear layer."""

    def __init__(
        self, input_shape: tuple[int, int, int], width: float, depth: float, resolution: int | None, classes_count: int
    ) -> None:
        super().__init__()
        self.resize, edge = fit_resolution(input_shape, resolution)
        stem_stride, *strides = fit_strides(edge, [2, *(stride for _, _, stride in STAGES)])
        channels = scale_channels(STEM, width)
        self.stem = ConvNorm(input_shape[0], channels, 3, stem_stride, activation=nn.ReLU)
        blocks: list[nn.Module] = []
        for (channels_out, count, _), stride in zip(STAGES, strides, strict=True):
            scaled = scale_channels(channels_out, width)
            for index in range(scale_blocks(count, depth)):
                blocks.append(SeparableBlock(channels, scaled, stride if index == 0 else 1))
                channels = scaled
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(channels, classes_count)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) -> logits (n, classes)."""
        values = self.blocks(self.stem(self.resize(inputs)))
        logits: Tensor = self.output(values.mean((2, 3)))
        return logits
