"""MobileNetV2: inverted residuals with linear bottlenecks.

Source: Sandler, Howard, Zhu, Zhmoginov & Chen (2018), "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table
2. The factor on width acts on the last convolution too, which the authors keep at 1,280 channels below width 1: that
is for 1,000 classes. Images below 64 pixels keep their size in the first layers (see ``fit_strides``).
"""

from torch import Tensor, nn

from mlites.models.inverted_residual import ConvNorm, InvertedResidual
from mlites.models.scaling import fit_resolution, fit_strides, scale_blocks, scale_channels

STEM, LAST = 32, 1280
STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2Classifier(nn.Module):
    """A 3x3 stem, 17 inverted residuals at depth 1, a last 1x1 convolution, the mean, one linear layer."""

    def __init__(
        self, input_shape: tuple[int, int, int], width: float, depth: float, resolution: int | None, classes_count: int
    ) -> None:
        super().__init__()
        self.resize, edge = fit_resolution(input_shape, resolution)
        stem_stride, *strides = fit_strides(edge, [2, *(stride for *_, stride in STAGES)])
        channels = scale_channels(STEM, width)
        self.stem = ConvNorm(input_shape[0], channels, 3, stem_stride, activation=nn.ReLU6)
        blocks: list[nn.Module] = []
        for (expansion, channels_out, count, _), stride in zip(STAGES, strides, strict=True):
            scaled = scale_channels(channels_out, width)
            for index in range(scale_blocks(count, depth)):
                own_stride = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, channels * expansion, scaled, 3, own_stride, nn.ReLU6))
                channels = scaled
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNorm(channels, scale_channels(LAST, width), activation=nn.ReLU6)
        self.output = nn.Linear(scale_channels(LAST, width), classes_count)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) -> logits (n, classes)."""
        values = self.last(self.blocks(self.stem(self.resize(inputs))))
        logits: Tensor = self.output(values.mean((2, 3)))
        return logits
