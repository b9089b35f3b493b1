"""Distances and angles are the paper's, and finite where rows are alike."""

import itertools

import numpy as np
import pytest
import torch

from mlites.compression.distillation.relational import angle_loss, distance_loss, relational_loss


def huber(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    gap = np.abs(ours - theirs)
    return np.where(gap <= 1, gap**2 / 2, gap - 0.5)


def sample() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(6, 3)), generator.normal(size=(6, 5)) ** 3


def test_distance_loss_equals_the_formula() -> None:
    ours, theirs = sample()
    pairs = list(itertools.combinations(range(6), 2))
    first, second = (np.array([np.linalg.norm(t[i] - t[j]) for i, j in pairs]) for t in (ours, theirs))
    expected = huber(first / first.mean(), second / second.mean()).mean()
    assert float(distance_loss(torch.tensor(ours), torch.tensor(theirs))) == pytest.approx(expected, rel=1e-9)


def cosine(rows: np.ndarray, i: int, j: int, k: int) -> float:
    one, other = rows[i] - rows[j], rows[k] - rows[j]
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_angle_loss_equals_the_formula() -> None:
    ours, theirs = sample()
    triples = list(itertools.permutations(range(6), 3))
    first, second = (np.array([cosine(rows, *triple) for triple in triples]) for rows in (ours, theirs))
    expected = huber(first, second).mean()
    assert float(angle_loss(torch.tensor(ours), torch.tensor(theirs))) == pytest.approx(expected, rel=1e-9)


def test_loss_adds_angles_twice_and_averages_over_groups() -> None:
    ours, theirs = torch.randn(200, 3), torch.randn(200, 4)
    parts = [
        distance_loss(ours[rows], theirs[rows]) + 2 * angle_loss(ours[rows], theirs[rows])
        for rows in (slice(0, 128), slice(128, 200))
    ]
    torch.testing.assert_close(relational_loss([ours], [theirs]), (parts[0] + parts[1]) / 2)


def test_turned_moved_and_stretched_rows_have_the_same_relations() -> None:
    rows = torch.randn(6, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert float(relational_loss([rows], [3 * rows @ turn + 1])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows_and_equal_rows_give_finite_gradients(count: int) -> None:
    ours = torch.zeros(count, 3, requires_grad=True)
    relational_loss([ours], [torch.randn(count, 4)]).backward()
    assert ours.grad is not None and bool(torch.isfinite(ours.grad).all())
