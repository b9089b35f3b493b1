"""Relational distillation: rows lie to each other as they do for the teacher, in distances and in angles.

Source: Park, Kim, Lu & Cho (2019), "Relational Knowledge Distillation".
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.distillation.features import Comparison, Pool, Trace

WEIGHT = 25.0  # of distances, as the paper has it for classification
ANGLE_RATIO = 2.0  # angles weigh twice as much there
LARGEST_GROUP = 128  # rows whose triples are compared: their number is the cube


def relational_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Loss of distances plus twice that of angles, as the mean over groups of up to 128 rows.

    Args:
        student: its last hidden state, one tensor (n, width).
        teacher: the same of the teacher (n, any width).
    """
    groups = list(zip(*(torch.split(values[0], LARGEST_GROUP) for values in (student, teacher)), strict=True))
    terms = [distance_loss(*group) + ANGLE_RATIO * angle_loss(*group) for group in groups]
    return torch.stack(terms).mean()


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss, as the mean over pairs, between distances that are divided by their mean.

    Args:
        student: (n, width).
        teacher: (n, any width).
    """
    return F.smooth_l1_loss(_distances(student), _distances(teacher)) if len(student) > 1 else student.sum() * 0


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss, as the mean over triples of different rows, between the cosines of the angle at the middle one.

    Args:
        student: (n, width).
        teacher: (n, any width).
    """
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher)) if len(student) > 2 else student.sum() * 0


def compare_relations(teacher: Trace, student: Trace) -> Comparison:
    """The last hidden states, as means over positions.

    Raises:
        InputError: a network has a single layer.
    """
    (ours, _), (theirs, _) = student.embedded("relational"), teacher.embedded("relational")
    views = nn.ModuleList([Pool()]), nn.ModuleList([Pool()])
    return Comparison((ours,), (theirs,), *views, relational_loss, WEIGHT)


def _distances(values: Tensor) -> Tensor:
    """(n, width) -> (n * (n - 1) / 2,) with mean 1."""
    first, second = torch.triu_indices(len(values), len(values), 1, device=values.device)
    # rows that are equal have no direction in which to part: no gradient, rather than the root's infinite one
    distances = (values[first] - values[second]).square().sum(1).clamp(min=1e-12).sqrt()
    return distances / distances.mean()


def _cosines(values: Tensor) -> Tensor:
    """(n, width) -> (n * (n - 1) * (n - 2),): the angle at each row between each two others, in a fixed order."""
    directions = F.normalize(values[None] - values[:, None], dim=2)
    cosines = directions @ directions.transpose(1, 2)
    same = torch.eye(len(values), dtype=torch.bool, device=values.device)
    return cosines[~(same[:, :, None] | same[:, None, :] | same[None])]
