"""The decoupled loss is the paper's formula, and its parts add up to Hinton's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlites.compression.distillation.decoupled import decoupled_loss, others_divergence, target_divergence


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sample(classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 7, classes)) * 3
    return student, teacher, generator.integers(0, classes, 7)


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4.0, 1.0, 8.0), (1.0, 0.5, 2.0)])
def test_loss_equals_the_formula(temperature: float, alpha: float, beta: float) -> None:
    student, teacher, labels = sample()
    total = 0.0
    for z, v, label in zip(student, teacher, labels, strict=True):
        q, p = softmax(z / temperature), softmax(v / temperature)
        tckd = p[label] * np.log(p[label] / q[label])
        tckd += (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label]))
        rest = [index for index in range(5) if index != label]
        p_hat, q_hat = p[rest] / p[rest].sum(), q[rest] / q[rest].sum()
        total += alpha * tckd + beta * (p_hat * np.log(p_hat / q_hat)).sum()
    entropy = -np.log(softmax(student)[np.arange(7), labels]).mean()
    found = decoupled_loss(
        torch.tensor(student), torch.tensor(teacher), torch.tensor(labels), temperature, 0.7, alpha=alpha, beta=beta
    )
    assert float(found) == pytest.approx(0.7 * total / 7 * temperature**2 + 0.3 * entropy, rel=1e-9)


def test_hintons_loss_is_the_sum_whose_second_part_weighs_what_the_teacher_leaves_to_other_classes() -> None:
    student, teacher, labels = (torch.tensor(values) for values in sample())
    p = torch.softmax(teacher / 4, 1)
    hinton = (p * (p.log() - F.log_softmax(student / 4, 1))).sum(1)
    left = 1 - p.gather(1, labels[:, None])[:, 0]
    parts = target_divergence(student, teacher, labels, 4.0) + left * others_divergence(student, teacher, labels, 4.0)
    torch.testing.assert_close(parts, hinton)


def test_student_equal_to_its_teacher_keeps_the_entropy_alone() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    found = decoupled_loss(logits, logits, labels, 4.0, 0.75)
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, labels)) / 4, rel=1e-5)


def test_of_two_classes_the_others_part_is_nothing() -> None:
    student, teacher, labels = (torch.tensor(values) for values in sample(classes=2))
    assert others_divergence(student, teacher, labels, 4.0).abs().max() < 1e-12


def test_very_sure_teacher_gives_finite_gradients() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    decoupled_loss(student, torch.tensor([[300.0, -300.0, 0.0]]), torch.tensor([0]), 1.0, 1.0).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all()) and bool(student.grad.any())
