"""The teacher answers the rows of the batch: from memory where they never change, else in the student's precision."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mlites.compression.distillation import answers
from mlites.compression.distillation.answers import TeacherAnswers
from mlites.compression.distillation.features import Pool, Tap
from mlites.recipe import Training
from mlites.training.loop import TrainingData, form_of_rows, train
from tests.compression.distillation.networks import Staged

ROWS = torch.tensor([3, 1, 19, 0, 7, 7])


PLAIN, CROPPED = Training(epochs=1), Training(epochs=1, augmentation=("crop",))
TWO_FORMS = Training(epochs=4, augmentation=("crop", "flip"), views=2, precision="fp32")


def data_of(inputs: Tensor) -> TrainingData:
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    return TrainingData(inputs, labels, inputs, labels, padding=(0.0,) if inputs.dim() == 4 else ())


@pytest.mark.parametrize("options", [PLAIN, CROPPED])
def test_teacher_answers_the_rows_of_the_batch(options: Training) -> None:
    teacher, data = Staged().eval(), data_of(torch.randn(20, 1, 8, 8))
    batch = data.inputs[ROWS] + (1.0 if options.augmentation else 0.0)
    asked = TeacherAnswers(teacher, data, options, 0)
    expected = teacher(batch).detach()
    for _ in range(2):
        logits, views = asked.about(ROWS, batch, bf16=False)
        torch.testing.assert_close(logits, expected)
        assert not views and not logits.requires_grad


def test_rows_that_come_back_in_two_forms_are_known_in_both() -> None:
    """In training, the answers are those to the very batch."""
    data, seen = data_of(torch.randn(20, 1, 8, 8)), []
    teacher, student = Staged().eval(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    asked = TeacherAnswers(copy.deepcopy(teacher), data, TWO_FORMS, 5)

    def loss(logits: Tensor, _labels: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        answer, _ = asked.about(rows, batch, bf16=False)
        torch.testing.assert_close(answer, teacher(batch).detach(), rtol=1e-4, atol=1e-5)
        seen.append(int(rows[0]) // 20)
        return logits.square().sum()

    train(student, data, TWO_FORMS, 5, loss, report=lambda _: None)
    assert seen == [0, 1, 0, 1] and set(asked.known) == {0, 1}


def test_averaged_answers_are_the_mean_over_the_forms_of_a_row() -> None:
    data, teacher = data_of(torch.randn(20, 1, 8, 8)), Staged().eval()
    asked = TeacherAnswers(copy.deepcopy(teacher), data, TWO_FORMS, 5, average=True)
    forms = [form_of_rows(data, TWO_FORMS, 5, number).of(data.inputs, torch.arange(20)) for number in (0, 1)]
    expected = (teacher(forms[0]) + teacher(forms[1])).detach() / 2
    for number, rows in enumerate(forms):
        logits, _ = asked.about(20 * number + ROWS, rows[ROWS], bf16=False)
        torch.testing.assert_close(logits, expected[ROWS])


def test_views_of_inner_layers_come_with_the_logits() -> None:
    teacher, data = Staged(), data_of(torch.randn(20, 1, 8, 8))
    kept, asked = (
        TeacherAnswers(teacher, data, options, 0, taps=[Tap("second")], views=[Pool()]) for options in (PLAIN, CROPPED)
    )
    batch = data.inputs[ROWS]
    expected = teacher.second(teacher.first(teacher.stem(batch).relu())).mean((2, 3))
    for one in (kept, asked):
        torch.testing.assert_close(one.about(ROWS, batch, bf16=False)[1][0], expected.detach())


def test_too_much_to_keep_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(torch.randn(20, 4))
    for spare in (-1, 0):
        monkeypatch.setattr(answers, "LARGEST_KEPT_BYTES", 20 * 3 * 4 + spare)
        asked = TeacherAnswers(nn.Linear(4, 3), data, PLAIN, 0)
        asked.about(ROWS, data.inputs[ROWS], bf16=False)
        assert bool(asked.known) == (spare == 0)


def test_rehearsal_leaves_nothing_that_training_would_hear() -> None:
    data = data_of(torch.randn(20, 64))
    rehearsed, plain = (TeacherAnswers(nn.Linear(64, 3), data, PLAIN, 0) for _ in range(2))
    plain.teacher.load_state_dict(rehearsed.teacher.state_dict())
    logits, _ = rehearsed.about(ROWS, data.inputs[ROWS], bf16=False, rehearsal=True)
    assert logits.shape == (6, 3) and not rehearsed.known
    first, second = (one.about(ROWS, data.inputs[ROWS], bf16=True)[0] for one in (rehearsed, plain))
    assert torch.equal(first, second)


@pytest.mark.parametrize("augmentation", [(), ("crop",)])
def test_teacher_of_a_student_in_bfloat16_computes_in_bfloat16(augmentation: tuple[str, ...]) -> None:
    teacher, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), data_of(torch.randn(20, 1, 8, 8))
    asked = TeacherAnswers(teacher, data, Training.model_validate({"augmentation": augmentation}), 0)
    logits, _ = asked.about(ROWS, data.inputs[ROWS], bf16=True)
    with torch.autocast(data.inputs.device.type, torch.bfloat16):
        expected = teacher(data.inputs[ROWS]).float()
    assert logits.dtype == torch.float32 and torch.equal(logits, expected)
    assert not torch.equal(logits, teacher(data.inputs[ROWS]))


def test_dropout_and_batch_statistics_of_the_teacher_rest() -> None:
    teacher = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)).train()
    data = data_of(torch.randn(20, 1, 8, 8))
    asked = TeacherAnswers(teacher, data, CROPPED, 0)
    first, second = (asked.about(ROWS, data.inputs[ROWS], bf16=False)[0] for _ in range(2))
    assert torch.equal(first, second) and not bool(teacher[0].running_mean.any())
