"""Weight sharing: the weights of a layer are clustered, and each becomes its cluster's one value.

Source: Han, Mao & Dally (2016), "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization
and Huffman Coding", section 3; Lloyd (1982), "Least squares quantization in PCM".
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROUNDS = 300  # of Lloyd's algorithm; it settles in far fewer


@dataclass(frozen=True)
class Clusters:
    """A layer's weights as few values.

    Attributes:
        centroids: (k,) rising.
        assignments: (n,) int64, of each weight the index of its centroid.
        squared_error: sum over all weights after each round, from the initial centroids' on; never rises.
    """

    centroids: NDArray[np.float64]
    assignments: NDArray[np.int64]
    squared_error: tuple[float, ...]


def linear_centroids(values: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """Evenly spaced from the least value to the largest, which keeps the few large weights that matter most.

    >>> linear_centroids(np.array([-1.0, 0.5, 2.0]), 4)
    array([-1.,  0.,  1.,  2.])
    """
    return np.linspace(float(values.min()), float(values.max()), count)


def cluster(values: NDArray[np.floating], count: int) -> Clusters:
    """k-means in one dimension from linear centroids; where few values differ, each is its own centroid.

    Args:
        values: (n,), not empty.
        count: most clusters to form; those that stay empty are left out.

    >>> cluster(np.array([0.0, 0.1, 0.9, 1.0]), 2).centroids
    array([0.05, 0.95])
    """
    distinct, assignments = np.unique(values, return_inverse=True)
    if len(distinct) <= count:
        return Clusters(distinct.astype(np.float64), assignments.astype(np.int64), (0.0,))
    ordered = np.sort(values.astype(np.float64))
    sums, squares = (np.concatenate([[0.0], np.cumsum(part)]) for part in (ordered, ordered**2))
    centroids, errors, before = linear_centroids(ordered, count), list[float](), np.zeros(0, np.int64)
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        sizes, totals, total_squares = (np.diff(part[ends]) for part in (np.arange(len(sums)), sums, squares))
        errors.append(float((total_squares - 2 * centroids * totals + sizes * centroids**2).sum()))
        if np.array_equal(ends, before):
            break
        centroids = np.divide(totals, sizes, out=centroids.copy(), where=sizes > 0)
        before = ends
    centroids = centroids[sizes > 0]
    return Clusters(
        centroids, np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values).astype(np.int64), tuple(errors)
    )


class SharedWeight(nn.Module):
    """Parametrization of a weight by the values that its cells share; cells pruned to zero stay zero.

    The gradient of a shared value is the sum over its cells' gradients, the paper's equation 3. A plain step along it
    would be as many times too long as there are cells. So what trains is each value times the root of the number of its
    cells: then a step moves a value by the mean of the steps that its cells would have taken alone, and learning rates
    mean what they mean for other networks.
    """

    cells: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        """Cluster a weight of any shape, its zeros apart, into at most 2^bits values."""
        super().__init__()
        values = weight.detach().flatten()
        kept = values != 0
        cells = torch.zeros(len(values), dtype=torch.int64)  # 0 is zero itself
        if bool(kept.any()):
            cells[kept] = torch.from_numpy(cluster(values[kept].numpy(), 2**bits).assignments) + 1
        self.register_buffer("cells", cells.view(weight.shape))
        self.register_buffer("scales", torch.bincount(cells)[1:].to(weight.dtype).sqrt())

    def forward(self, scaled: Tensor) -> Tensor:
        """Shared values (k,), each times its scale -> the weight."""
        values = torch.cat([scaled.new_zeros(1), scaled / self.scales])
        return values.index_select(0, self.cells.flatten()).view(self.cells.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight -> the mean of each cluster (k,), times its scale."""
        sums = torch.zeros(len(self.scales) + 1, dtype=torch.float64)
        sums.index_add_(0, self.cells.flatten(), weight.detach().flatten().double())
        return (sums[1:] / self.scales.double()).to(weight.dtype)
