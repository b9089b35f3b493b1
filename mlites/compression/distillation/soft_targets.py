"""Distillation: the student matches the teacher's softened probabilities.

Source: Hinton, Vinyals & Dean (2015), "Distilling the Knowledge in a Neural Network".
"""

import torch.nn.functional as F
from torch import Tensor


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
