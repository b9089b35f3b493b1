"""Schedules follow the formulas they are named for."""

import math

import pytest
import torch

from mlites.training.schedule import constant, one_cycle, step_decay


@pytest.mark.parametrize("steps", [10, 37, 400])
def test_one_cycle_equals_pytorchs_own(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps)
    for step in range(steps):
        assert one_cycle(step, steps, 0.3) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            reference.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_shortest_runs_have_finite_rates_within_the_peak(steps: int) -> None:
    rates = [one_cycle(step, steps, 0.1) for step in range(steps)]
    assert all(math.isfinite(rate) and 0 <= rate <= 0.1 for rate in rates)


def test_step_decay_divides_by_ten_twice() -> None:
    assert [step_decay(step, 100, 0.5) for step in (0, 49, 50, 74, 75, 99)] == [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]


def test_constant_stays_at_the_peak() -> None:
    assert {constant(step, 100, 0.5) for step in range(100)} == {0.5}
