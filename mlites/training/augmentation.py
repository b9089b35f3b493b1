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
        reach: by how many pixels pictures are padded, at top and bottom and at both sides.
    """

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None
    padding: tuple[float, ...]
    reach: tuple[int, int]

    def of(self, images: Tensor, rows: Tensor) -> Tensor:
        """The form of some rows.

        Args:
            images: these rows as they are, (m, channels, height, width), on any device.
            rows: their numbers (m,).
        """
        if self.top is not None and self.left is not None:
            images = shift(images, self.padding, self.top[rows], self.left[rows], self.reach)
        if self.mirrored is not None:
            images = torch.where(self.mirrored[rows].to(images.device), images.flip(3), images)
        return images


def draw_form(
    count: int,
    shape: Sequence[int],
    steps: Sequence[str],
    padding: Sequence[float],
    seed: int,
    number: int,
    *,
    crop: float = 0.125,
) -> Form:
    """Draw one form of all rows; the same seed and number give the same on every device.

    Args:
        count: rows n.
        shape: (channels, height, width), or (features,) where there are no steps.
        steps: crop, which moves each picture, what comes in from outside being black; flip, which mirrors half of the
            pictures left to right.
        padding: for each channel, what a black pixel becomes; empty for zeros.
        seed: of the training.
        number: of the form.
        crop: how far pictures move at the most, as a fraction of their edges; by one pixel at least.
    """
    generator = Generator().manual_seed(seed * 1_000_003 + number)
    top = left = mirrored = None
    down = right = 0
    if "crop" in steps:
        down, right = (max(1, int(edge * crop)) for edge in shape[1:])
        top = torch.randint(0, 2 * down + 1, (count, 1), generator=generator)
        left = torch.randint(0, 2 * right + 1, (count, 1), generator=generator)
    if "flip" in steps:
        mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return Form(top, left, mirrored, tuple(padding) or (0.0,) * shape[0], (down, right))


def shift(images: Tensor, padding: Sequence[float], top: Tensor, left: Tensor, reach: tuple[int, int]) -> Tensor:
    """Windows of the padded pictures.

    Args:
        images: (n, channels, height, width), already preprocessed.
        padding: for each channel, what surrounds the picture.
        top: where each window begins, (n, 1), from 0 to twice the first reach.
        left: the same of the width and the second.
        reach: pixels that surround it, at top and bottom and at both sides.

    Returns:
        Same shape; channels last in memory.
    """
    count, channels, height, width = images.shape
    down, right = reach
    fill = torch.tensor(padding, dtype=images.dtype, device=images.device).view(1, channels, 1, 1)
    padded = fill.expand(count, channels, height + 2 * down, width + 2 * right).clone()
    padded[:, :, down : down + height, right : right + width] = images
    rows = (top + torch.arange(height)).to(images.device)
    columns = (left + torch.arange(width)).to(images.device)
    sample = torch.arange(count, device=images.device).view(count, 1, 1)
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
