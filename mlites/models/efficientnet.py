"""EfficientNet: inverted residuals with squeeze-and-excitation, whose depth, width and resolution grow together.

Source: Tan & Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1 and section
3.3; without its stochastic depth. Phi of 0 and 1 give the published B0 and B2. For the others the authors rounded their
factors by hand, so these are to be given as factors, without phi: width 1.0 and depth 1.1 are B1, 1.2 and 1.4 B3, 1.4
and 1.8 B4. The resolution is rounded to whole pixels (258 for B2, published as 260). Images below 64 pixels keep their
size in the first layers (see ``fit_strides``).
"""

from torch import Tensor, nn

from mlites.models.inverted_residual import ConvNorm, InvertedResidual, SqueezeExcitation
from mlites.models.scaling import fit_resolution, fit_strides, scale_blocks, scale_channels

DEPTH_GROWTH, WIDTH_GROWTH, RESOLUTION_GROWTH = 1.2, 1.1, 1.15  # alpha, beta and gamma of the paper
DROPOUT = 0.2
STEM, LAST = 32, 1280
STAGES = (  # expansion, kernel, channels, blocks, stride of the first
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


class EfficientNetClassifier(nn.Module):
    """A 3x3 stem, 16 blocks at depth 1, a last 1x1 convolution, the mean, one linear layer."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        width: float,
        depth: float,
        resolution: int | None,
        compound: float,
        classes_count: int,
    ) -> None:
        super().__init__()
        width, depth = width * WIDTH_GROWTH**compound, depth * DEPTH_GROWTH**compound
        self.resize, edge = fit_resolution(input_shape, resolution, RESOLUTION_GROWTH**compound)
        stem_stride, *strides = fit_strides(edge, [2, *(stride for *_, stride in STAGES)])
        channels = scale_channels(STEM, width)
        self.stem = ConvNorm(input_shape[0], channels, 3, stem_stride, activation=nn.SiLU)
        blocks: list[nn.Module] = []
        for (expansion, kernel, channels_out, count, _), stride in zip(STAGES, strides, strict=True):
            scaled = scale_channels(channels_out, width)
            for index in range(scale_blocks(count, depth)):
                inner = channels * expansion
                gate = SqueezeExcitation(inner, channels // 4, nn.SiLU)
                own_stride = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, inner, scaled, kernel, own_stride, nn.SiLU, gate))
                channels = scaled
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNorm(channels, scale_channels(LAST, width), activation=nn.SiLU)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(scale_channels(LAST, width), classes_count)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) -> logits (n, classes)."""
        values = self.last(self.blocks(self.stem(self.resize(inputs))))
        logits: Tensor = self.output(self.dropout(values.mean((2, 3))))
        return logits
