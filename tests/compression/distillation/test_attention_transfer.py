"""Attention maps are the paper's, at every resolution of any two networks."""

import numpy as np
import pytest
import torch

from mlites.compression.distillation.attention_transfer import (
    AttentionMap,
    attention_loss,
    compare_attention,
    pair_stages,
)
from mlites.compression.distillation.features import Layer, trace
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.recipe import MLP, ResNet
from tests.compression.distillation.networks import Staged


def test_map_is_the_normalized_sum_of_squares() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 5, 4, 2)).astype(np.float32)
    squares = (maps.astype(np.float64) ** 2).sum(1).reshape(3, 8)
    found = AttentionMap((4, 2), (4, 2))(torch.tensor(maps))
    np.testing.assert_allclose(found, squares / np.sqrt((squares**2).sum(1, keepdims=True)), rtol=1e-5)


def test_larger_map_is_averaged_over_areas() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    squares = (maps.astype(np.float64) ** 2).sum(1)
    small = squares.reshape(2, 2, 2, 3, 2).mean((2, 4)).reshape(2, 6)
    found = AttentionMap((4, 6), (2, 3))(torch.tensor(maps))
    np.testing.assert_allclose(found, small / np.sqrt((small**2).sum(1, keepdims=True)), rtol=1e-5)


@pytest.mark.parametrize(("positions", "divisor"), [(100, 100), (4, 64)])
def test_loss_is_the_squared_distance_over_the_maps_elements_summed_over_stages(positions: int, divisor: int) -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 2, 7, positions))
    expected = sum(((a - b) ** 2).sum(1).mean() / divisor for a, b in zip(ours, theirs, strict=True))
    found = attention_loss(list(torch.tensor(ours)), list(torch.tensor(theirs)))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_scale_of_a_network_does_not_matter() -> None:
    maps, view = torch.randn(3, 5, 4, 4), AttentionMap((4, 4), (4, 4))
    assert float(attention_loss([view(maps)], [view(-7 * maps)])) == pytest.approx(0, abs=1e-12)


def test_every_resolution_of_a_resnet_is_compared_at_the_end_of_its_stage() -> None:
    teacher, student = (
        trace(build_model(ResNet(family="resnet", depth=depth, width=4), (1, 8, 8), 3), torch.randn(2, 1, 8, 8), "net")
        for depth in (20, 8)
    )
    comparison = compare_attention(teacher, student)
    assert [tap.layer for tap in comparison.student] == ["blocks.0", "blocks.1", "blocks"]
    assert [tap.layer for tap in comparison.teacher] == ["blocks.2", "blocks.5", "blocks"]


def test_users_stages_are_taken_whole() -> None:
    rows = torch.randn(2, 1, 8, 8)
    comparison = compare_attention(trace(Staged((8, 8), blocks=2), rows, "net"), trace(Staged(), rows, "net"))
    assert [tap.layer for tap in comparison.student] == ["first", "second"]
    assert [tap.layer for tap in comparison.teacher] == ["first", "second"]


def test_stages_pair_by_nearest_size_and_each_of_the_teachers_counts_once() -> None:
    student = [Layer(f"s{edge}", (3, edge, edge), True, 0.5) for edge in (32, 14, 7)]
    teacher = [Layer(f"t{edge}", (3, edge, edge), True, 0.5) for edge in (28, 8)]
    pairs = [(ours.name, theirs.name) for ours, theirs in pair_stages(student, teacher)]
    assert pairs == [("s32", "t28"), ("s7", "t8")]


def test_network_without_maps_is_refused() -> None:
    rows = torch.randn(2, 1, 8, 8)
    conv, flat = (
        trace(build_model(options, (1, 8, 8), 3), rows, who)
        for options, who in ((ResNet(family="resnet", depth=8, width=4), "teacher"), (MLP(family="mlp"), "student"))
    )
    with pytest.raises(InputError, match=r"^the student \(MLPClassifier\) has no maps to compare: none of its layers"):
        compare_attention(conv, flat)
