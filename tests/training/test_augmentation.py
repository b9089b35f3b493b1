"""Shifted and mirrored images hold the same pixels at other places; seed and number decide which."""

import torch

from mlites.training.augmentation import draw_form


def test_each_shift_is_a_window_of_the_padded_image() -> None:
    images = torch.randn(40, 2, 16, 9)
    shifted = draw_form(40, (2, 16, 9), ("crop",), (-7.0, 5.0), 0, 0).of(images, torch.arange(40))
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
    assert shifted.is_contiguous(memory_format=torch.channels_last)


def test_a_smaller_crop_moves_less_but_by_one_pixel_at_least() -> None:
    images = torch.arange(28.0).expand(200, 1, 28, 28)
    for crop, reach in ((0.125, 3), (0.08, 2), (0.01, 1)):
        moved = draw_form(200, (1, 28, 28), ("crop",), (), 0, 0, crop=crop).of(images, torch.arange(200))
        assert set((moved[:, 0, 14, 14] - 14).int().tolist()) == set(range(-reach, reach + 1))


def test_flip_mirrors_whole_rows_of_some_images() -> None:
    images = torch.randn(64, 3, 5, 7)
    mirrored = draw_form(64, (3, 5, 7), ("flip",), (), 0, 0).of(images, torch.arange(64))
    same = [torch.equal(a, b) for a, b in zip(images, mirrored, strict=True)]
    flipped = [torch.equal(a.flip(2), b) for a, b in zip(images, mirrored, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True)) and 20 < sum(flipped) < 44


def test_seed_and_number_decide_the_form_of_a_row_and_its_batch_does_not() -> None:
    images, steps = torch.randn(50, 1, 8, 8), ("crop", "flip")
    whole = draw_form(50, (1, 8, 8), steps, (0.5,), 4, 2).of(images, torch.arange(50))
    rows = torch.tensor([7, 3, 49, 3])
    assert torch.equal(draw_form(50, (1, 8, 8), steps, (0.5,), 4, 2).of(images[rows], rows), whole[rows])
    for seed, number in ((5, 2), (4, 3)):
        assert not torch.equal(
            draw_form(50, (1, 8, 8), steps, (0.5,), seed, number).of(images, torch.arange(50)), whole
        )


def test_without_steps_rows_stay_as_they_are() -> None:
    table = torch.randn(6, 3)
    assert draw_form(6, (3,), (), (), 0, 0).of(table, torch.arange(6)) is table
