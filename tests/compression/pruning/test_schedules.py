"""Schedules follow the papers' formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlites.compression.pruning.schedules import equal_steps, geometric, gradual


def test_gradual_is_equation_1_of_zhu_and_gupta() -> None:
    """s_t at t = t0, t0 + dt, ..., t0 + n dt of the paper's own setting: from 0 to 87.5%, n = 10 steps of 100."""
    start, step, count, initial, final = 200, 100, 10, 0.0, 0.875
    total = 2000
    for t in range(start, start + count * step + 1, step):
        expected = final + (initial - final) * (1 - (t - start) / (count * step)) ** 3
        found = gradual(t / total, final, initial, begin=start / total, end=(start + count * step) / total)
        assert found == pytest.approx(expected, rel=1e-12)


def test_gradual_waits_before_and_holds_after() -> None:
    assert gradual(0.05, 0.9, 0.1, begin=0.1) == pytest.approx(0.1)
    assert [gradual(done, 0.9) for done in (0.75, 0.8, 1.0)] == [0.9, 0.9, 0.9]


@given(st.floats(0.01, 0.99), st.integers(2, 30))
@settings(deadline=None)
def test_every_schedule_rises_to_the_amount_itself(final: float, rounds: int) -> None:
    for rates in (
        [gradual(done, final) for done in np.linspace(0, 1, 40)],
        [geometric(number, rounds, final) for number in range(1, rounds + 1)],
        [equal_steps(number, rounds, final) for number in range(1, rounds + 1)],
    ):
        assert rates == sorted(rates) and rates[-1] == final and rates[0] < final


def test_geometric_rounds_remove_the_same_share_of_what_is_left() -> None:
    """Frankle & Carbin: 20% a round leave 0.8^n of the weights."""
    final = 1 - 0.8**10
    assert [1 - geometric(n, 10, final) for n in range(1, 11)] == pytest.approx([0.8**n for n in range(1, 11)])


def test_equal_rounds_remove_as_many_each() -> None:
    assert np.diff([0, *(equal_steps(n, 4, 0.6) for n in range(1, 5))]) == pytest.approx([0.15] * 4)
