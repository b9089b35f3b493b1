"""Ranks by energy and by one budget for the network."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlites.compression.factorization.ranks import Choice, by_budget, by_energy, rank_grid, that_save


def layer(values: list[float], cost: int) -> list[Choice]:
    """Choices of rank 1, 2, ... of singular values, and the whole layer at twice the cost of them all."""
    kept = np.square(values).cumsum() / np.square(values).sum()
    choices = [
        Choice((rank + 1,), cost * (rank + 1), cost * (rank + 1), float(kept[rank])) for rank in range(len(kept))
    ]
    return [*choices[:-1], Choice((), 2 * cost * len(kept), 2 * cost * len(kept), 1.0)]


def product(choices: tuple[Choice, ...]) -> float:
    return math.prod(choice.energy for choice in choices)


def test_energy_rule_takes_the_least_rank_that_keeps_enough() -> None:
    values = [4.0, 2.0, 2.0, 1.0]  # squares 16, 4, 4, 1 of 25
    choices = layer(values, 10)
    expected = {0.5: (1,), 0.64: (1,), 0.65: (2,), 0.8: (2,), 0.81: (3,), 0.96: (3,), 0.97: ()}
    for energy, ranks in expected.items():
        chosen = by_energy(choices, energy)
        assert chosen is not None and chosen.ranks == ranks
    assert by_energy(choices[:3], 0.97) is None


spectra = st.lists(st.floats(0.01, 10), min_size=2, max_size=6).map(lambda values: sorted(values, reverse=True))


@given(st.lists(st.tuples(spectra, st.integers(1, 20)), min_size=1, max_size=3), st.floats(0, 1))
def test_budget_is_kept_and_nothing_at_that_cost_keeps_more(
    layers: list[tuple[list[float], int]], share: float
) -> None:
    named = {str(index): layer(values, cost) for index, (values, cost) in enumerate(layers)}
    least = sum(min(one.macs for one in found) for found in named.values())
    most = sum(found[-1].macs for found in named.values())
    budget = least + share * (most - least)
    chosen = tuple(by_budget(named, budget).values())
    spent = sum(one.macs for one in chosen)
    assert spent <= budget and (share < 1 or all(one.ranks == () for one in chosen))
    # a budget at which the greedy walk stops exactly is spent in the best way of all
    every = list(itertools.product(*named.values()))
    exact = by_budget(named, spent)
    best = max(product(one) for one in every if sum(choice.macs for choice in one) <= spent)
    within = [one for one in every if sum(choice.macs for choice in one) <= budget]
    assert product(tuple(exact.values())) <= best * (1 + 1e-9)
    # one layer's largest step is all that greed can lose
    steps = [b.energy / a.energy for found in named.values() for a, b in itertools.pairwise(found)]
    assert product(chosen) * max(steps) ** len(named) >= max(product(one) for one in within) * (1 - 1e-9)


def test_greedy_walk_is_optimal_wherever_it_stops_by_itself() -> None:
    named = {"a": layer([5.0, 3.0, 1.0, 0.5], 7), "b": layer([2.0, 1.9, 1.8, 1.7], 3), "c": layer([9.0, 0.1], 20)}
    every = list(itertools.product(*named.values()))
    slopes_in_order = sorted(
        {
            sum(one.macs for one in by_budget(named, budget).values())
            for budget in range(sum(found[0].macs for found in named.values()), 200)
        }
    )
    optimal = 0
    for budget in slopes_in_order:
        best = max(product(one) for one in every if sum(choice.macs for choice in one) <= budget)
        optimal += product(tuple(by_budget(named, budget).values())) >= best * (1 - 1e-9)
    assert optimal >= len(slopes_in_order) - 2  # a step skipped because it did not fit may leave a gap


def test_steep_layers_keep_less_than_flat_ones() -> None:
    """Equal costs: the layer whose energy lies in its first value needs no more; the flat one does."""
    named = {"steep": layer([10.0, 0.1, 0.1, 0.1], 10), "flat": layer([1.0, 1.0, 1.0, 1.0], 10)}
    chosen = by_budget(named, 40)
    assert chosen["steep"].ranks == (1,) and chosen["flat"].ranks == (3,)


def test_budget_below_the_cheapest_choices_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest choices take 20 multiply-accumulates, the budget is 19"):
        by_budget({"a": layer([1.0, 1.0], 10), "b": layer([1.0, 1.0], 10)}, 19)


def test_choices_that_save_nothing_are_left_out() -> None:
    whole = Choice((), 100, 50, 1.0)
    cheaper, more_parameters, more_macs = (
        Choice((1,), 99, 49, 0.5),
        Choice((2,), 99, 50, 0.5),
        Choice((3,), 100, 1, 0.5),
    )
    assert that_save([cheaper, more_parameters, more_macs], whole) == [cheaper]


def test_ranks_are_multiples_of_eight_where_there_is_room() -> None:
    assert rank_grid(64) == [8, 16, 24, 32, 40, 48, 56, 64] and rank_grid(15) == list(range(1, 16))
