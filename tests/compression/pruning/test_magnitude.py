"""Magnitude pruning zeroes the exact share of the smallest weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlites.compression.pruning.magnitude import prune_magnitude, sparsity, zero_masks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 7))


def flat(module: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters() if p.dim() > 1])


@given(st.floats(0.001, 0.999))
@settings(max_examples=25, deadline=None)
def test_share_is_exact_and_the_largest_stay(amount: float) -> None:
    module = network()
    pruned, facts = prune_magnitude(module, amount)
    before, after = flat(module), flat(pruned)
    count = round(amount * len(before))
    expected = before.copy()
    expected[np.argsort(np.abs(before), kind="stable")[:count]] = 0
    assert np.array_equal(after, expected)
    assert facts == {"weights": 185, "zeros": count, "sparsity": count / 185}


def test_input_is_left_unchanged_and_biases_stay() -> None:
    module, before = network(), flat(network())
    pruned, _ = prune_magnitude(module, 0.9)
    assert np.array_equal(flat(module), before)
    biases = [(p, q) for p, q in zip(module.parameters(), pruned.parameters(), strict=True) if p.dim() == 1]
    assert all(torch.equal(p, q) for p, q in biases)


def test_equal_weights_are_pruned_to_the_exact_share() -> None:
    layer = nn.Linear(10, 10)
    nn.init.constant_(layer.weight, 0.5)
    pruned, _ = prune_magnitude(layer, 0.37)
    assert int((pruned.weight == 0).sum()) == 37 and bool((pruned.weight.flatten()[:37] == 0).all())


def test_zeros_of_an_earlier_pruning_count() -> None:
    once, _ = prune_magnitude(network(), 0.5)
    twice, facts = prune_magnitude(once, 0.8)
    assert facts["zeros"] == round(0.8 * 185) and np.array_equal(flat(twice), flat(prune_magnitude(network(), 0.8)[0]))


def test_masks_are_where_the_weights_are() -> None:
    pruned, _ = prune_magnitude(network(), 0.5)
    masks = zero_masks(pruned)
    assert set(masks) == {"0.weight", "4.weight"}
    assert sum(int((~mask).sum()) for mask in masks.values()) == sparsity(pruned)["zeros"]
    assert zero_masks(network()) == {}


@pytest.mark.parametrize("amount", [0.0, 1.0, -0.1, float("nan")])
def test_amount_outside_its_range_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="amount must be above 0 and below 1"):
        prune_magnitude(network(), amount)
