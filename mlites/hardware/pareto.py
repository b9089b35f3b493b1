"""The Pareto front, what nothing else beats, and how much of the possible it covers.

Sources: Pareto (1906); of two points one dominates if it is at least as good everywhere and better somewhere. Zitzler &
Thiele (1998), the hypervolume; computed exactly by moocore.
"""

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point is on the front; equal points are on it together.

    Args:
        points: (n, k), larger is better in each of the k columns.

    Returns:
        (n,).

    >>> pareto_front([(1, 1), (2, 0), (0, 0)]).tolist()
    [True, True, False]
    """
    values = _checked(points)
    at_least_as_good = (values[:, None] >= values[None, :]).all(axis=2)
    better_somewhere = (values[:, None] > values[None, :]).any(axis=2)
    dominated: NDArray[np.bool_] = np.any(at_least_as_good & better_somewhere, axis=0)
    return np.logical_not(dominated)


def covered_share(points: ArrayLike, reference: ArrayLike) -> float:
    """The hypervolume as a share of the box between a reference point and the best there could be.

    Args:
        points: (n, k), costs of which 0 is the best there could be.
        reference: (k,), above 0; a point that is no better than it on some axis covers nothing.

    Returns:
        Fraction of the box in which every point is beaten by one of these or equal to it.

    >>> covered_share([(1, 2), (2, 1)], (4, 4))
    0.5
    """
    values, worst = _checked(points), np.asarray(reference, np.float64)
    if not (worst > 0).all() or (values < 0).any():
        raise ValueError(f"costs must be at least 0 and the reference above 0, got {worst.tolist()}")
    return float(moocore.hypervolume(values / worst, ref=np.ones(len(worst))))


def _checked(points: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(points, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"points must be finite numbers of shape (n, k), got shape {values.shape}")
    return values
