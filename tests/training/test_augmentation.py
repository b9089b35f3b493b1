"""Shifted and mirrored images hold the same pixels at other places."""

import torch
from torch import Generator

from mlites.training.augmentation import mirror, shift


def test_each_shift_is_a_window_of_the_padded_image() -> None:
    images = torch.randn(40, 2, 16, 9)
    shifted = shift(images, (-7.0, 5.0), Generator().manual_seed(0))
    offsets = set()
    for image, found in zip(images, shifted, strict=True):
        padded = torch.stack(
            [torch.nn.functional.pad(image[c], (1, 1, 2, 2), value=v) for c, v in ((0, -7.0), (1, 5.0))]
        )
        windows = {(y, x): padded[:, y : y + 16, x : x + 9] for y in range(5) for x in range(3)}
        matches = [place for place, window in windows.items() if torch.equal(window, found)]
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len(offsets) > 8


def test_mirror_flips_whole_rows_of_some_images() -> None:
    images = torch.randn(64, 3, 5, 7)
    mirrored = mirror(images, Generator().manual_seed(0))
    same = [torch.equal(a, b) for a, b in zip(images, mirrored, strict=True)]
    flipped = [torch.equal(a.flip(2), b) for a, b in zip(images, mirrored, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True)) and 20 < sum(flipped) < 44


def test_same_generator_state_gives_the_same_draws() -> None:
    images = torch.randn(8, 1, 8, 8)
    one, two = (shift(images, (0.0,), Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two) and one.is_contiguous(memory_format=torch.channels_last)
