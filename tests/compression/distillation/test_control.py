"""The control is the same training without the teacher, and the test is exact."""

import copy

import pytest
import torch
from torch import nn

from mlites.compression.distillation.control import compare_with_control
from mlites.recipe import Training
from mlites.training.loop import TrainingData, evaluate, train

TRAINING = Training(epochs=2, batch_size=16, learning_rate=0.05, precision="fp32")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def test_control_is_the_plain_training_of_the_same_student(pictures: TrainingData) -> None:
    student, plain = network(), network()
    before = copy.deepcopy(student.state_dict())
    train(plain, pictures, TRAINING, 5, report=lambda _: None)
    facts = compare_with_control(plain, student, pictures, TRAINING, 5)
    accuracy, _ = evaluate(plain, pictures.validation_inputs, pictures.validation_labels)
    assert facts == {
        "control_validation_accuracy": accuracy,
        "gain_points": 0.0,
        "p_value": 1.0,
        "paid": False,
        "verdict": "not distinguishable from the same training without the teacher",
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


class Oracle(nn.Module):
    """Knows the labels of the validation rows, or just the wrong ones."""

    def __init__(self, data: TrainingData, *, right: bool) -> None:
        super().__init__()
        labels = data.validation_labels if right else (data.validation_labels + 1) % 3
        self.logits = nn.functional.one_hot(labels, 3).float()

    def forward(self, _rows: torch.Tensor) -> torch.Tensor:
        """(n, 1, 8, 8) -> logits (n, 3)."""
        return self.logits


@pytest.mark.parametrize("right", [True, False])
def test_gain_counts_rows_and_only_a_better_student_was_worth_it(pictures: TrainingData, right: bool) -> None:
    facts = compare_with_control(Oracle(pictures, right=right), network(), pictures, TRAINING, 0)
    control = float(facts["control_validation_accuracy"])
    assert 0 < control < 1
    assert facts["gain_points"] == pytest.approx(100 * ((1.0 if right else 0.0) - control))
    differing = round(40 * (1 - control)) if right else round(40 * control)
    assert facts["p_value"] == pytest.approx(min(1.0, 2 * 0.5**differing))
    assert facts["paid"] is right
    assert str(facts["verdict"]).startswith("better" if right else "worse")
