"""Random shifts and mirror images: each epoch sees every row in one form, drawn from seed and epoch alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Form:
    """How each of n rows is changed.

    Attributes:
        top: where the window begins in the padded picture, (n, 1), or None where nothing shifts.
        left: the same from the left.
        mirrored: (n, 1, 1, 1), or None where nothing is mirrored.
        padding: for each channel, what a black pixel becomes in preprocessing.
    """

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None
    padding: tuple[float, ...]

    def of(self, images: Tensor, rows: Tensor) -> Tensor:
        """The form of some rows.

        Args:
            images: these rows as they are, (m, channels, height, width), on any device.
            rows: their numbers (m,).
        """
        if self.top is not None and self.left is not None:
            images = shift(images, self.padding, self.top[rows], self.left[rows])
        if self.mirrored is not None:
            images = torch.where(self.mirrored[rows].to(images.device), images.flip(3), images)
        return images


def draw_form(
    count: int, shape: Sequence[int], steps: Sequence[str], padding: Sequence[float], seed: int, number: int
) -> Form:
    """Draw one form of all rows; the same seed and number give the same on every device.

    Args:
        count: rows n.
        shape: (channels, height, width), or (features,) where there are no steps.
        steps: crop, which moves each picture by up to an eighth of its edges, what comes in from outside being black;
            flip, which mirrors half of the pictures left to right.
        padding: for each channel, what a black pixel becomes; empty for zeros.
        seed: of the training.
        number: of the form.
    """
    generator = Generator().manual_seed(seed * 1_000_003 + number)
    top = left = mirrored = None
    if "crop" in steps:
        top = torch.randint(0, 2 * _reach(shape[1]) + 1, (count, 1), generator=generator)
        left = torch.randint(0, 2 * _reach(shape[2]) + 1, (count, 1), generator=generator)
    if "flip" in steps:
        mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return Form(top, left, mirrored, tuple(padding) or (0.0,) * shape[0])


def shift(images: Tensor, padding: Sequence[float], top: Tensor, left: Tensor) -> Tensor:
    """Windows of the padded pictures.

    Args:
        images: (n, channels, height, width), already preprocessed.
        padding: for each channel, what surrounds the picture, an eighth of its edge on each side.
        top: where each window begins, (n, 1), from 0 to twice an eighth of the height.
        left: the same of the width.

    Returns:
        Same shape; channels last in memory.
    """
    count, channels, height, width = images.shape
    down, right = _reach(height), _reach(width)
    fill = torch.tensor(padding, dtype=images.dtype, device=images.device).view(1, channels, 1, 1)
    padded = fill.expand(count, channels, height + 2 * down, width + 2 * right).clone()
    padded[:, :, down : down + height, right : right + width] = images
    rows = (top + torch.arange(height)).to(images.device)
    columns = (left + torch.arange(width)).to(images.device)
    sample = torch.arange(count, device=images.device).view(count, 1, 1)
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reach(edge: int) -> int:
    return max(1, edge // 8)
