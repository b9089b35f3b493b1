"""How lightweight networks scale: channels in multiples of eight, blocks rounded up, images resized.

Source: Howard et al. (2017), "MobileNets" (factors on width and resolution); Sandler et al. (2018), "MobileNetV2" (the
rounding, as in the authors' code); Tan & Le (2019), "EfficientNet" (a factor on depth).
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

SMALL_EDGE = 64  # pixels
LEAST_EDGE_LEFT = 4


def scale_channels(channels: int, factor: float) -> int:
    """Round to a multiple of eight: at least eight, and not below nine tenths of what was asked.

    >>> [scale_channels(channels, 0.35) for channels in (16, 32, 96, 160)]
    [8, 16, 32, 56]
    """
    asked = channels * factor
    rounded = max(8, int(asked + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * asked else rounded


def scale_blocks(blocks: int, factor: float) -> int:
    """Round up, but for what is a whole number save for floating point.

    >>> [scale_blocks(blocks, 1.1) for blocks in (1, 3, 10)]
    [2, 4, 11]
    """
    return math.ceil(round(blocks * factor, 6))


def fit_strides(edge: int, strides: Sequence[int]) -> list[int]:
    """Strides of a network made for 224 pixels, for images of another size.

    Below 64 pixels the earliest strides become 1, the stem's first, as all do who train such networks on CIFAR: so
    many that 4 pixels an edge are left at the end, where the image has as many.

    >>> fit_strides(224, [2, 1, 2, 2, 2, 2]), fit_strides(28, [2, 1, 2, 2, 2, 2]), fit_strides(8, [2, 1, 2, 2, 2, 2])
    ([2, 1, 2, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 2])
    """
    fitted = list(strides)
    for index in range(len(fitted)):
        if edge >= SMALL_EDGE or math.ceil(edge / math.prod(fitted)) >= LEAST_EDGE_LEFT:
            break
        fitted[index] = 1
    return fitted


def fit_resolution(
    input_shape: tuple[int, int, int], resolution: int | None, factor: float = 1.0
) -> tuple[nn.Module, int]:
    """What brings images to the network's resolution, and their shorter edge in pixels after it.

    Args:
        input_shape: (channels, height, width).
        resolution: of both edges; None keeps those that the images have.
        factor: on the edges, rounded to whole pixels.
    """
    size = input_shape[1:] if resolution is None else (resolution, resolution)
    height, width = (max(1, round(edge * factor)) for edge in size)
    same = (height, width) == input_shape[1:]
    return nn.Identity() if same else Resize(height, width), min(height, width)


class Resize(nn.Module):
    """Bilinear, and antialiased where it shrinks: every pixel then counts."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, height, width)."""
        return F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
