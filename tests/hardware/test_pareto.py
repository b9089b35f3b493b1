import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlites.hardware.pareto import pareto_front

POINT = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))  # few values, so that many are equal


@given(st.lists(POINT, min_size=1, max_size=12))
def test_the_front_is_that_of_brute_force(points: list[tuple[int, int, int]]):
    expected = []
    for one in points:
        dominated = False
        for other in points:
            pairs = list(zip(one, other, strict=True))
            if all(theirs >= ours for ours, theirs in pairs) and any(theirs > ours for ours, theirs in pairs):
                dominated = True
        expected.append(not dominated)
    assert pareto_front(points).tolist() == expected


@given(st.lists(POINT, min_size=1, max_size=12), st.randoms())
def test_the_order_of_points_does_not_matter(points: list[tuple[int, int, int]], random):
    order = list(range(len(points)))
    random.shuffle(order)
    shuffled = pareto_front([points[index] for index in order])
    assert shuffled.tolist() == pareto_front(points)[order].tolist()


def test_equal_points_are_on_the_front_together():
    assert pareto_front([(1, 2), (1, 2), (0, 2)]).tolist() == [True, True, False]


def test_points_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"points must be finite numbers of shape \(n, k\), got shape \(2, 2\)"):
        pareto_front([(1, np.nan), (0, 1)])
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        pareto_front([1, 2, 3])
