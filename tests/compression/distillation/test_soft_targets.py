"""The distillation loss is the paper's formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlites.compression.distillation.soft_targets import soft_target_loss


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("temperature", "weight", "smoothing"), [(1.0, 1.0, 0.0), (4.0, 0.9, 0.0), (2.5, 0.3, 0.1)])
def test_loss_equals_the_formula(temperature: float, weight: float, smoothing: float) -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 7, 5)) * 3
    labels = generator.integers(0, 5, 7)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    divergence = (p * np.log(p / q)).sum(1).mean() * temperature**2
    targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    entropy = -(targets * np.log(softmax(student))).sum(1).mean()
    found = soft_target_loss(
        torch.tensor(student), torch.tensor(teacher), torch.tensor(labels), temperature, weight, smoothing
    )
    assert float(found) == pytest.approx(weight * divergence + (1 - weight) * entropy, rel=1e-9)


def test_gradient_at_high_temperature_pulls_towards_the_teachers_logits() -> None:
    """The paper's limit: the gradient tends to (z - v) / classes for logits of zero mean."""
    student = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[3.0, -1.0, -2.0]], dtype=torch.float64)
    soft_target_loss(student, teacher, torch.tensor([0]), 1e4, 1.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, rtol=1e-3, atol=1e-6)


def test_student_equal_to_its_teacher_has_no_soft_loss() -> None:
    logits = torch.randn(5, 3)
    hard = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    assert float(soft_target_loss(logits, logits, torch.zeros(5, dtype=torch.int64), 4.0, 0.75)) == pytest.approx(
        float(hard) / 4, rel=1e-6
    )
