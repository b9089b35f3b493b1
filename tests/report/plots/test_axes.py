import math
from itertools import pairwise

import pytest

from mlites.report.plots.axes import linear_ticks, log_ticks


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.9712, 0.9891), (3, 4000), (-2, 7)])
def test_linear_ticks_are_round_and_inside(low, high):
    ticks = linear_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 8 and low <= ticks[0] and ticks[-1] <= high
    steps = {round(after - before, 9) for before, after in pairwise(ticks)}
    assert len(steps) == 1
    mantissa = steps.pop() / 10 ** math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 2.5, 5)


@pytest.mark.parametrize("low, high", [(0.4, 30), (1, 2.2), (0.9, 5), (0.001, 5000)])
def test_log_ticks_are_inside_and_not_too_many(low, high):
    ticks = log_ticks(low, high, 8)
    assert 2 <= len(ticks) <= 9 and low <= ticks[0] and ticks[-1] <= high and ticks == sorted(ticks)
