"""Drift of predictions: have the shares of the classes that a model names moved away from those of the test split?

Source: Siddiqi (2006), Credit Risk Scorecards, for the population stability index (PSI) and its limit of 0.2; Yurdakul
(2018), Statistical Properties of Population Stability Index, for what chance alone brings; Pearson (1900) for the
chi-square test of homogeneity; Cochran (1954), Some Methods for Strengthening the Common chi-square Tests, for the
least expected count of 5.

With reference counts r_i of n rows and served counts s_i of m rows over k classes, half a count added to each,
PSI = sum (q_i - p_i) ln(q_i / p_i), p and q being the shares. Without drift it is about (1/n + 1/m) times a chi-square
variable of k - 1 degrees.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from mlites.data.profile import chance_level, population_stability_index

LEAST_EXPECTED = 5.0


@dataclass(frozen=True)
class PredictionDrift:
    """How far served predictions are from the reference.

    Attributes:
        rows: served predictions compared.
        reference_rows: of the reference.
        psi: population stability index.
        chance: the PSI that chance alone exceeds once in a thousand at these numbers of rows.
        chi_square: statistic of Pearson's test that both come from one distribution.
        p_value: of this test; 1 where too few rows leave it nothing to compare.
        shares: for each class, its fraction of the reference and of the served predictions.
    """

    rows: int
    reference_rows: int
    psi: float
    chance: float
    chi_square: float
    p_value: float
    shares: dict[str, tuple[float, float]]

    def exceeds(self, limit: float) -> bool:
        """Whether the PSI is above a limit, and above what chance explains."""
        return self.psi > max(limit, self.chance)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_prediction_drift(reference: Mapping[str, int], served: Mapping[str, int]) -> PredictionDrift:
    """Compare counts of predicted classes.

    Args:
        reference: rows of the test split that the model puts in each class.
        served: predictions of each class; classes unknown to the reference count too.

    Raises:
        ValueError: either is empty.
    """
    names = [*reference, *sorted(set(served) - set(reference))]
    before = np.array([reference.get(name, 0) for name in names], np.float64)
    after = np.array([served.get(name, 0) for name in names], np.float64)
    if not before.sum() or not after.sum():
        raise ValueError(f"drift compares rows with rows, got {before.sum():.0f} and {after.sum():.0f}")
    statistic, p_value = chi_square(before, after)
    shares = zip(before / before.sum(), after / after.sum(), strict=True)
    return PredictionDrift(
        rows=int(after.sum()),
        reference_rows=int(before.sum()),
        psi=population_stability_index(before, after),
        chance=chance_level(len(names), int(before.sum()), int(after.sum())),
        chi_square=statistic,
        p_value=p_value,
        shares={name: (float(old), float(new)) for name, (old, new) in zip(names, shares, strict=True)},
    )


def chi_square(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """Pearson's test that two rows of counts (k,) come from one distribution: statistic and p-value.

    Classes in which either row is expected to have fewer than `LEAST_EXPECTED` are taken together; where that leaves
    one class, nothing can differ.
    """
    total = before + after
    expected = total * min(before.sum(), after.sum()) / total.sum()
    rare = expected < LEAST_EXPECTED
    pooled = [np.append(row[~rare], row[rare].sum()) for row in (before, after)]
    table = np.array(pooled)[:, np.add(*pooled) > 0]
    if table.shape[1] < 2:
        return 0.0, 1.0
    found = chi2_contingency(table, correction=False)
    return float(found.statistic), float(found.pvalue)
