"""Distillation: the student matches the teacher's softened probabilities.

Source: Hinton, Vinyals & Dean (2015), "Distilling the Knowledge in a Neural Network".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.training.loop import Loss, evaluate


def soft_target_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    soft_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Weighted sum of KL divergence from the teacher, softened, and cross-entropy with the labels.

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes).
        labels: (n,).
        temperature: divides both logits in the soft part, whose gradient is scaled back by its square.
        soft_weight: share of the soft part, 0 to 1.
        label_smoothing: of the cross-entropy.
    """
    targets = F.log_softmax(teacher / temperature, 1)
    predicted = F.log_softmax(student / temperature, 1)
    soft = F.kl_div(predicted, targets, reduction="batchmean", log_target=True) * temperature**2
    hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
    return soft_weight * soft + (1 - soft_weight) * hard


def distillation_loss(
    teacher: nn.Module,
    inputs: Tensor,
    *,
    augmented: bool,
    temperature: float,
    soft_weight: float,
    label_smoothing: float = 0.0,
) -> Loss:
    """The loss that `train` takes to make a student of this teacher.

    Args:
        teacher: in evaluation mode; follows the student to its device.
        inputs: all training rows, as preprocessed.
        augmented: the rows change from epoch to epoch, so that the teacher must look at each batch anew; otherwise it
            looks at all rows once, at the start.
        temperature: as in `soft_target_loss`, like the rest.
        soft_weight: the same.
        label_smoothing: the same.
    """
    known: Tensor | None = None

    def loss(student: Tensor, labels: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        nonlocal known
        if augmented:
            with torch.no_grad():
                logits = teacher.to(batch.device)(batch).float()
        else:
            if known is None:
                known = evaluate(teacher.to(batch.device), inputs, torch.zeros(len(inputs)))[1]
            logits = known[rows].to(student.device)
        return soft_target_loss(student, logits, labels, temperature, soft_weight, label_smoothing)

    return loss
