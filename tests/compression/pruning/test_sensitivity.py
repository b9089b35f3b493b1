"""Rates by sensitivity reach the amount, and cost each layer the same."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlites.compression.pruning.sensitivity import analyse, equalise
from mlites.training.loop import TrainingData, evaluate

PROBED = (0.25, 0.5, 0.75, 0.875)
curves = st.lists(
    st.tuples(st.lists(st.floats(-1, 80), min_size=4, max_size=4), st.integers(1, 10000)), min_size=1, max_size=8
)


@given(curves, st.floats(0.05, 0.85))
@settings(deadline=None)
def test_total_is_the_amount_and_no_layer_goes_beyond_the_highest_rate_tried(
    layers: list[tuple[list[float], int]], amount: float
) -> None:
    drops = {str(index): tuple(drop) for index, (drop, _) in enumerate(layers)}
    sizes = {str(index): size for index, (_, size) in enumerate(layers)}
    rates = equalise(PROBED, drops, sizes, amount)
    removed = sum(sizes[name] * rate for name, rate in rates.items())
    assert removed == pytest.approx(amount * sum(sizes.values()), rel=1e-6)
    assert all(0 <= rate <= PROBED[-1] + 1e-9 for rate in rates.values())


def test_predicted_drops_are_equal_where_curves_rise() -> None:
    drops = {"a": (1.0, 3.0, 9.0, 30.0), "b": (4.0, 12.0, 40.0, 60.0), "c": (0.5, 1.0, 2.0, 20.0)}
    sizes = {"a": 100, "b": 400, "c": 50}
    rates = equalise(PROBED, drops, sizes, 0.5)
    predicted = [np.interp(rates[name], (0, *PROBED), (0, *drop)) for name, drop in drops.items()]
    assert predicted == pytest.approx([predicted[0]] * 3, rel=1e-6)
    assert rates["c"] > rates["a"] > rates["b"]


def test_what_costs_nothing_is_shared_out_evenly() -> None:
    rates = equalise(PROBED, {"a": (0, 0, 0, 0), "b": (-1.0, 0, 0, 0)}, {"a": 10, "b": 90}, 0.5)
    assert rates == pytest.approx({"a": 0.5, "b": 0.5})


def test_seeming_gain_at_a_higher_rate_is_chance() -> None:
    """b loses 8 points at half, and seems to lose 2 at three quarters: it is treated as losing 8."""
    rates = equalise(PROBED, {"a": (1, 2, 3, 4), "b": (4, 8, 2, 9)}, {"a": 100, "b": 100}, 0.5)
    assert rates["a"] > 0.7 and rates["b"] < 0.3


class Scripted(nn.Module):
    """Answers rightly but for a number of rows."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        right = rows[:, 0].long()
        right = torch.where(rows[:, 1] < self.wrong, 1 - right, right)
        return torch.nn.functional.one_hot(right, 2).float()


def scripted_data(count: int) -> TrainingData:
    labels = torch.arange(count) % 2
    rows = torch.stack([labels.float(), torch.arange(count).float()], 1)
    return TrainingData(rows, labels, rows, labels)


def test_drops_are_points_of_validation_accuracy_and_frail_layers_are_protected() -> None:
    def prune_one(name: str, rate: float) -> nn.Module:
        return Scripted(round({"frail": 80, "robust": 8}[name] * rate))

    found = analyse(Scripted(0), scripted_data(100), 0.5, {"frail": 10, "robust": 10}, prune_one, seed=0)
    assert found.probed == (0.25, 0.5, 0.75, 0.875)
    assert found.drops["frail"] == pytest.approx((20, 40, 60, 70))
    assert found.drops["robust"] == pytest.approx((2, 4, 6, 7))
    assert found.protected == ("frail",) and found.rates["robust"] == pytest.approx(0.875)
    table = found.to_json()
    assert table["layers"]["frail"] == {"rate": 0.125, "drops_points": [20.0, 40.0, 60.0, 70.0]}
    assert table["probed_rates"] == [0.25, 0.5, 0.75, 0.875] and table["protected"] == ["frail"]


def test_large_validation_sets_are_sampled_by_the_seed() -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(len(rows))
            return Scripted(0)(rows)

    module = Counting()
    data = scripted_data(3000)
    analyse(module, data, 0.5, {"a": 1}, lambda _name, _rate: copy.deepcopy(module), seed=0)
    assert sum(seen) == 5 * 1024
    drops = [
        analyse(Scripted(0), data, 0.5, {"a": 1}, lambda _name, rate: Scripted(round(900 * rate)), seed).drops["a"]
        for seed in (0, 0, 1)
    ]
    assert drops[0] == drops[1] != drops[2]
    whole, _ = evaluate(Scripted(450), data.inputs, data.labels)
    assert drops[0][1] == pytest.approx(100 * (1 - whole), abs=3)
