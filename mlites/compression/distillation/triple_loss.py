"""The triple loss of DistilBERT: soft targets, labels, and the direction of the hidden states.

Source: Sanh, Debut, Chaumond & Wolf (2019), "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and
lighter". Where widths differ, a linear projection that trains with the student takes its hidden state to the teacher's.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.distillation.features import Comparison, Pool, Trace, pooled_width

WEIGHT = 1 / 7  # the authors' training command has 5 for soft targets, 2 for labels, 1 for the cosine


def cosine_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """1 minus the cosine between hidden states, as the mean over rows.

    Args:
        student: one tensor (n, width).
        teacher: one tensor (n, width).
    """
    return 1 - F.cosine_similarity(student[0], teacher[0], dim=1).mean()


def compare_hidden_states(teacher: Trace, student: Trace) -> Comparison:
    """The last hidden states, as means over positions.

    Raises:
        InputError: a network has a single layer.
    """
    (ours, shape), (theirs, wanted) = student.embedded("triple"), teacher.embedded("triple")
    width, wanted_width = pooled_width(shape), pooled_width(wanted)
    projection = nn.Identity() if width == wanted_width else nn.Linear(width, wanted_width)
    views = nn.ModuleList([nn.Sequential(Pool(), projection)]), nn.ModuleList([Pool()])
    return Comparison((ours,), (theirs,), *views, cosine_loss, WEIGHT)
