import math

import numpy as np
import pytest
from scipy.special import gammaincc

from mlites.serving.drift import chi_square, measure_prediction_drift

REFERENCE = {"cat": 300, "dog": 500, "owl": 200}


def test_psi_is_the_sum_of_share_changes_times_their_log_ratios() -> None:
    found = measure_prediction_drift(REFERENCE, {"cat": 60, "dog": 20, "owl": 20})
    p = [300.5 / 1001.5, 500.5 / 1001.5, 200.5 / 1001.5]
    q = [60.5 / 101.5, 20.5 / 101.5, 20.5 / 101.5]
    assert found.psi == pytest.approx(math.fsum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True)))
    assert (found.rows, found.reference_rows) == (100, 1000)
    assert found.shares["dog"] == (0.5, 0.2)
    assert found.exceeds(0.2)


def test_chi_square_is_pearsons_sum_and_its_p_value_the_incomplete_gamma_function() -> None:
    before, after = np.array([300.0, 500.0, 200.0]), np.array([60.0, 20.0, 20.0])
    statistic = 0.0
    for row in (before, after):
        expected = (before + after) * row.sum() / 1100
        statistic += float(((row - expected) ** 2 / expected).sum())
    assert chi_square(before, after) == pytest.approx((statistic, gammaincc(1.0, statistic / 2)))


def test_rare_classes_are_tested_together() -> None:
    before, after = np.array([50.0, 48.0, 1.0, 1.0]), np.array([50.0, 44.0, 3.0, 3.0])
    pooled = chi_square(np.array([50.0, 48.0, 2.0]), np.array([50.0, 44.0, 6.0]))
    assert chi_square(before, after) == pytest.approx(pooled)
    assert chi_square(np.array([1.0, 1.0]), np.array([2.0, 0.0])) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [50, 500])
def test_without_drift_the_limit_is_exceeded_once_in_a_thousand(rows: int) -> None:
    draw = np.random.default_rng(rows)
    shares = [0.3, 0.5, 0.2]
    found = []
    for _ in range(2000):
        before, after = draw.multinomial(1000, shares), draw.multinomial(rows, shares)
        names = ("cat", "dog", "owl")
        found.append(
            measure_prediction_drift(
                dict(zip(names, map(int, before), strict=True)), dict(zip(names, map(int, after), strict=True))
            )
        )
    assert sum(one.exceeds(0.0) for one in found) <= 8  # of 2000; 2 are expected
    assert np.mean([one.p_value < 0.05 for one in found]) == pytest.approx(0.05, abs=0.015)


def test_a_shift_is_found_and_a_class_that_the_reference_never_saw_counts() -> None:
    same = measure_prediction_drift(REFERENCE, {"cat": 30, "dog": 50, "owl": 20})
    assert same.psi < 0.01 and same.p_value > 0.9 and not same.exceeds(0.0)
    new = measure_prediction_drift(REFERENCE, {"cat": 30, "dog": 50, "elk": 20})
    assert new.exceeds(0.2) and new.p_value < 1e-6 and new.shares["elk"] == (0.0, 0.2)


def test_a_large_index_of_few_rows_is_taken_for_chance() -> None:
    few = measure_prediction_drift(REFERENCE, {"cat": 4, "dog": 2})
    assert few.psi > 0.2 and not few.exceeds(0.2)


def test_no_rows_cannot_drift() -> None:
    with pytest.raises(ValueError, match="drift compares rows with rows, got 1000 and 0"):
        measure_prediction_drift(REFERENCE, {})
