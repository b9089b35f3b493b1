import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlites.hardware.pareto import covered_share, pareto_front

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


def test_the_share_of_one_point_is_the_box_beyond_it():
    assert covered_share([(0.2, 0.5, 1.0)], (1.0, 2.0, 4.0)) == pytest.approx(0.8 * 0.75 * 0.75)
    assert covered_share([(0, 0)], (3, 3)) == 1
    assert covered_share([(3, 0), (4, 4)], (3, 3)) == 0


def inclusion_exclusion(points: list[list[float]]) -> float:
    """The union of boxes from each point to (1, ..., 1), by the sum over all sets of them."""
    total = 0.0
    for count in range(1, len(points) + 1):
        for some in combinations(points, count):
            sides = [max(1 - max(axis), 0) for axis in zip(*some, strict=True)]
            total += (-1) ** (count + 1) * math.prod(sides)
    return total


@given(st.lists(st.lists(st.floats(0, 1.2), min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_share_is_that_of_inclusion_and_exclusion_in_five_dimensions(points: list[list[float]]):
    assert covered_share(points, [1.0] * 5) == pytest.approx(inclusion_exclusion(points), abs=1e-9)


def test_the_share_is_that_of_darts():
    generator = np.random.default_rng(4)
    points = generator.random((8, 5)) ** 2
    darts = generator.random((200_000, 5))
    hit = np.zeros(len(darts), bool)
    for point in points:
        hit |= (darts >= point).all(axis=1)
    assert covered_share(points, [1.0] * 5) == pytest.approx(hit.mean(), abs=4 * math.sqrt(0.25 / len(darts)))


@pytest.mark.parametrize(("points", "reference"), [([(-0.1, 0)], (1, 1)), ([(0, 0)], (1, 0))])
def test_costs_that_are_none_are_refused(points: list[tuple[float, float]], reference: tuple[float, float]):
    with pytest.raises(ValueError, match="costs must be at least 0 and the reference above 0"):
        covered_share(points, reference)
