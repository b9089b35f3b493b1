"""The Pareto front: what nothing else beats.

Source: Pareto (1906); of two points one dominates if it is at least as good everywhere and better somewhere.
"""

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
    values = np.asarray(points, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"points must be finite numbers of shape (n, k), got shape {values.shape}")
    at_least_as_good = (values[:, None] >= values[None, :]).all(axis=2)
    better_somewhere = (values[:, None] > values[None, :]).any(axis=2)
    dominated: NDArray[np.bool_] = np.any(at_least_as_good & better_somewhere, axis=0)
    return np.logical_not(dominated)
