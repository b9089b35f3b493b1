"""MobileNetV3: inverted residuals with squeeze-and-excitation and hard swish, found by search.

Source: Howard et al. (2019), "Searching for MobileNetV3", tables 1 and 2. The factor on width acts on the last two
layers too. Images below 64 pixels keep their size in the first layers (see ``fit_strides``).
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from mlites.models.inverted_residual import ConvNorm, InvertedResidual, SqueezeExcitation
from mlites.models.scaling import fit_resolution, fit_strides, scale_blocks, scale_channels

STEM = 16
DROPOUT = 0.2


class Stage(NamedTuple):
    """Blocks of one width; the first has the stride. ``expanded``: channels inside of each block."""

    kernel: int
    expanded: tuple[int, ...]
    channels: int
    gated: bool
    activation: type[nn.Module]
    stride: int


STAGES = {
    "large": (
        Stage(3, (16,), 16, False, nn.ReLU, 1),
        Stage(3, (64, 72), 24, False, nn.ReLU, 2),
        Stage(5, (72, 120, 120), 40, True, nn.ReLU, 2),
        Stage(3, (240, 200, 184, 184), 80, False, nn.Hardswish, 2),
        Stage(3, (480, 672), 112, True, nn.Hardswish, 1),
        Stage(5, (672, 960, 960), 160, True, nn.Hardswish, 2),
    ),
    "small": (
        Stage(3, (16,), 16, True, nn.ReLU, 2),
        Stage(3, (72, 88), 24, False, nn.ReLU, 2),
        Stage(5, (96, 240, 240), 40, True, nn.Hardswish, 2),
        Stage(5, (120, 144), 48, True, nn.Hardswish, 1),
        Stage(5, (288, 576, 576), 96, True, nn.Hardswish, 2),
    ),
}
HIDDEN = {"large": 1280, "small": 1024}


class MobileNetV3Classifier(nn.Module):
    """A 3x3 stem, 15 (large) or 11 (small) blocks at depth 1, a 1x1 convolution, the mean, two linear layers."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        variant: Literal["small", "large"],
        width: float,
        depth: float,
        resolution: int | None,
        classes_count: int,
    ) -> None:
        super().__init__()
        stages = STAGES[variant]
        self.resize, edge = fit_resolution(input_shape, resolution)
        stem_stride, *strides = fit_strides(edge, [2, *(stage.stride for stage in stages)])
        channels = scale_channels(STEM, width)
        self.stem = ConvNorm(input_shape[0], channels, 3, stem_stride, activation=nn.Hardswish)
        blocks: list[nn.Module] = []
        for stage, stride in zip(stages, strides, strict=True):
            scaled = scale_channels(stage.channels, width)
            for index in range(scale_blocks(len(stage.expanded), depth)):
                inner = scale_channels(stage.expanded[min(index, len(stage.expanded) - 1)], width)
                gate = SqueezeExcitation(inner, scale_channels(inner, 0.25), gate=nn.Hardsigmoid)
                blocks.append(
                    InvertedResidual(
                        channels,
                        inner,
                        scaled,
                        stage.kernel,
                        stride if index == 0 else 1,
                        stage.activation,
                        gate if stage.gated else None,
                    )
                )
                channels = scaled
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNorm(channels, 6 * channels, activation=nn.Hardswish)
        self.hidden = nn.Linear(6 * channels, scale_channels(HIDDEN[variant], width))
        self.activation = nn.Hardswish()
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(self.hidden.out_features, classes_count)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) -> logits (n, classes)."""
        values = self.last(self.blocks(self.stem(self.resize(inputs))))
        logits: Tensor = self.output(self.dropout(self.activation(self.hidden(values.mean((2, 3))))))
        return logits
