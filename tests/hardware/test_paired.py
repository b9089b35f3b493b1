import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mlites.hardware.paired import Drop, mcnemar


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 21), (900, 1100)])
def test_p_value_is_the_binomial_tests(better: int, worse: int):
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(worse, better) == mcnemar(better, worse)


@pytest.mark.parametrize(("lost", "won"), [(4, 0), (5, 0), (0, 5), (12, 5), (13, 5), (0, 0)])
def test_a_loss_is_beyond_chance_where_the_one_sided_test_says_so_at_five_percent(lost: int, won: int):
    one_sided = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
    assert Drop(200, lost, won).beyond_chance == (one_sided <= 0.05)


def test_the_interval_is_that_of_the_definition_and_holds_the_loss():
    # by hand: counts 4.5 and 1.5 of 362; standard error sqrt(4.5 + 1.5 - 3 * 3 / 362) / 362
    error = math.sqrt(6 - 9 / 362) / 362
    z = norm.ppf(0.975)
    assert Drop(360, 4, 1).interval == pytest.approx(
        (100 * (3 / 362 - z * error), 100 * (3 / 362 + z * error)), rel=1e-6
    )
    for lost, won in product(range(0, 37, 4), repeat=2):
        if lost + won <= 36:
            drop = Drop(36, lost, won)
            assert -100 <= drop.interval[0] <= drop.points <= drop.interval[1] <= 100


@pytest.mark.parametrize(
    ("rows", "lost", "won"),
    [(36, 0.03, 0.03), (36, 0.12, 0.02), (360, 0.02, 0.02), (360, 0.05, 0.01), (1000, 0.004, 0.004)],
)
def test_intervals_hold_the_true_loss_in_at_least_92_of_100_samples_however_few_the_rows(
    rows: int, lost: float, won: float
):
    drawn = np.random.default_rng(5).multinomial(rows, [lost, won, 1 - lost - won], size=4000)
    found, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    intervals = [Drop(rows, int(a), int(b)).interval for a, b in found]
    holds = [low <= 100 * (lost - won) <= high for low, high in intervals]
    assert np.average(holds, weights=counts) >= 0.92
