"""Random shifts and mirror images of a batch, drawn from a generator of the caller's."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def shift(images: Tensor, padding: Sequence[float], generator: Generator) -> Tensor:
    """Move each image by up to an eighth of its edges; what comes in from outside is black.

    Args:
        images: (n, channels, height, width), already preprocessed.
        padding: for each channel, what a black pixel becomes in preprocessing.
        generator: on the CPU, so that every device draws the same.

    Returns:
        Same shape; channels last in memory.
    """
    count, channels, height, width = images.shape
    down, right = max(1, height // 8), max(1, width // 8)
    fill = torch.tensor(padding, dtype=images.dtype, device=images.device).view(1, channels, 1, 1)
    padded = fill.expand(count, channels, height + 2 * down, width + 2 * right).clone()
    padded[:, :, down : down + height, right : right + width] = images
    top = torch.randint(0, 2 * down + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * right + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(height)).to(images.device)
    columns = (left + torch.arange(width)).to(images.device)
    sample = torch.arange(count, device=images.device).view(count, 1, 1)
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mirror(images: Tensor, generator: Generator) -> Tensor:
    """Flip half of the images (n, channels, height, width), by a fair coin each, left to right."""
    flipped = torch.rand(images.shape[0], 1, 1, 1, generator=generator) < 0.5
    return torch.where(flipped.to(images.device), images.flip(3), images)
