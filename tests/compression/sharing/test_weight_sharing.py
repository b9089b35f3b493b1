"""Clusters are those of k-means in one dimension, and a shared value learns from all of its cells."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import nn
from torch.nn.utils import parametrize

from mlites.compression.sharing.weight_sharing import SharedWeight, cluster, linear_centroids


def squared_error(values: np.ndarray, centroids: np.ndarray) -> float:
    return float(((values[:, None] - centroids) ** 2).min(1).sum())


@pytest.mark.parametrize("count", [2, 4, 16, 31])
def test_clusters_are_those_of_scikit_learn_from_the_same_start(count: int) -> None:
    values = np.random.default_rng(count).uniform(-1, 1, 3000) ** 3  # no cluster stays empty
    start = linear_centroids(values, count)[:, None]
    theirs = KMeans(count, init=start, n_init=1, max_iter=300, tol=0).fit(values[:, None])
    ours = cluster(values, count)
    np.testing.assert_allclose(ours.centroids, np.sort(theirs.cluster_centers_[:, 0]), atol=1e-9)
    assert ours.squared_error[-1] == pytest.approx(theirs.inertia_, rel=1e-9)


def test_start_is_even_from_the_least_to_the_largest_weight() -> None:
    values = np.array([0.3, -0.7, 1.3, 0.1])
    expected = [-0.7 + 2.0 * index / 4 for index in range(5)]
    np.testing.assert_allclose(linear_centroids(values, 5), expected)


@pytest.mark.parametrize("seed", range(5))
def test_error_never_rises_and_each_weight_is_nearest_to_its_own_centroid(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.normal(-1, 0.2, 400), generator.standard_t(2, 300)])
    found = cluster(values, 8)
    steps = np.diff(found.squared_error)
    assert len(steps) >= 2
    assert steps.max() <= 1e-9 * found.squared_error[0]
    assert found.squared_error[0] == pytest.approx(squared_error(values, linear_centroids(values, 8)), rel=1e-9)
    assert found.squared_error[-1] == pytest.approx(squared_error(values, found.centroids), rel=1e-9)
    distances = np.abs(values[:, None] - found.centroids)
    np.testing.assert_array_equal(found.assignments, distances.argmin(1))
    for index, centroid in enumerate(found.centroids):
        assert centroid == pytest.approx(values[found.assignments == index].mean())


def test_few_distinct_values_are_kept_as_they_are() -> None:
    values = np.array([2.0, -1.0, 2.0, 0.5], np.float32)
    found = cluster(values, 4)
    np.testing.assert_array_equal(found.centroids[found.assignments], values)


def test_clusters_that_stay_empty_are_left_out() -> None:
    values = np.concatenate([np.linspace(0, 1, 50), [100.0]])
    found = cluster(values, 8)
    assert len(found.centroids) < 8
    assert set(found.assignments.tolist()) == set(range(len(found.centroids)))


def sparse_weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 20, generator=generator)
    return weight * (torch.rand(6, 20, generator=generator) > 0.4)


def test_gradient_of_a_shared_value_is_the_sum_over_its_cells() -> None:
    """Equation 3 of the paper, by a loop over clusters."""
    layer, weight, inputs = nn.Linear(20, 6), sparse_weight(), torch.randn(9, 20)
    with torch.no_grad():
        layer.weight.copy_(weight)
    shared = SharedWeight(weight, 2)
    parametrize.register_parametrization(layer, "weight", shared)
    plain = layer.weight.detach().clone().requires_grad_()
    layer(inputs).square().sum().backward()
    F.linear(inputs, plain, layer.bias).square().sum().backward()
    assert plain.grad is not None
    found = layer.parametrizations.weight.original.grad * shared.scales  # by the value itself, not the scaled one
    for index in range(4):
        torch.testing.assert_close(found[index], plain.grad[shared.cells == index + 1].sum())


def test_a_step_moves_a_shared_value_by_the_mean_of_its_cells_steps() -> None:
    weight = sparse_weight()
    shared = SharedWeight(weight, 3)
    scaled = shared.right_inverse(weight).requires_grad_()
    direction = torch.randn(6, 20)
    before = shared(scaled)
    (before * direction).sum().backward()
    assert scaled.grad is not None
    moved = shared(scaled.detach() - 0.1 * scaled.grad)
    for index in range(1, 9):
        cells = shared.cells == index
        torch.testing.assert_close(moved[cells], (before - 0.1 * direction[cells].mean())[cells])


def test_pruned_cells_stay_zero_and_others_take_their_clusters_mean() -> None:
    weight = sparse_weight()
    shared = SharedWeight(weight, 3)
    result = shared(shared.right_inverse(weight))
    assert torch.equal(result == 0, weight == 0)
    assert len(result[result != 0].unique()) == 8
    for index in range(1, 9):
        cells = shared.cells == index
        torch.testing.assert_close(result[cells].unique(), weight[cells].mean().reshape(1))


def test_a_layer_of_zeros_alone_stays_zero() -> None:
    shared = SharedWeight(torch.zeros(2, 3), 4)
    assert torch.equal(shared(shared.right_inverse(torch.zeros(2, 3))), torch.zeros(2, 3))
