"""Whether distillation paid: the same student, trained without the teacher, answers the same validation rows.

Source: Dietterich (1998), "Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms":
McNemar's test, for two classifiers each trained once; here in its exact form. It speaks of these two networks: another
seed may turn a small difference round.
"""

import copy
from pathlib import Path

from torch import Tensor, nn

from mlites.hardware.paired import mcnemar
from mlites.recipe import Training
from mlites.training.display import epoch_line
from mlites.training.loop import TrainingData, evaluate, train

SIGNIFICANCE = 0.05


def compare_with_control(
    distilled: nn.Module,
    student: nn.Module,
    data: TrainingData,
    options: Training,
    seed: int,
    *,
    masks: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
) -> dict[str, float | bool | str]:
    """Train a copy of the student on labels alone, in the same order of rows, and compare the two.

    Args:
        distilled: what distillation made of the student.
        student: as it was before; left unchanged.
        data: rows as in distillation.
        options: of both trainings.
        seed: of both trainings.
        masks: as in distillation.
        checkpoint: file of this training.

    Returns:
        control_validation_accuracy (fraction), gain_points (percentage points of accuracy), p_value, paid, verdict.
    """
    control = copy.deepcopy(student)

    def report(entry: dict[str, float]) -> None:
        print(f"without the teacher: {epoch_line(entry, options.epochs)}", flush=True)

    train(control, data, options, seed, masks=masks, checkpoint=checkpoint, report=report)
    accuracy, logits = evaluate(control, data.validation_inputs, data.validation_labels)
    ours = evaluate(distilled, data.validation_inputs, data.validation_labels)[1].argmax(1) == data.validation_labels
    theirs = logits.argmax(1) == data.validation_labels
    better, worse = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p_value = mcnemar(better, worse)
    verdict = "not distinguishable from the same training without the teacher"
    if p_value < SIGNIFICANCE:
        verdict = f"{'better' if better > worse else 'worse'} than the same training without the teacher"
    return {
        "control_validation_accuracy": accuracy,
        "gain_points": 100 * (better - worse) / len(theirs),
        "p_value": p_value,
        "paid": p_value < SIGNIFICANCE and better > worse,
        "verdict": verdict,
    }
