"""Attention transfer: the student looks where its teacher looks, at every resolution.

Source: Zagoruyko & Komodakis (2017), "Paying More Attention to Attention: Improving the Performance of Convolutional
Neural Networks via Attention Transfer".
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.distillation.features import Comparison, Layer, Tap, Trace, nearest_size, resize

WEIGHT = 500.0  # the paper's beta / 2, with beta = 1000 over the number of the map's elements and of rows
LEAST_POSITIONS = 64  # the paper's smallest map: divided by fewer, the smallest would drown all others and the labels


class AttentionMap(nn.Module):
    """Sum of the channels' squares, resized where asked, as a vector of length 1."""

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        self.resize = resize(before, after)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, h' * w')."""
        return F.normalize(self.resize(maps.float().square().sum(1)).float().flatten(1))


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over stages of the squared distance between attention maps, as the mean over rows and positions.

    Args:
        student: for each stage (n, positions); below 64 positions count as 64.
        teacher: of the same shapes.
    """
    terms = [
        (ours - theirs).square().sum(1).mean() / max(ours.shape[1], LEAST_POSITIONS)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum()


def compare_attention(teacher: Trace, student: Trace) -> Comparison:
    """The last map of each resolution with the teacher's of the nearest resolution, both at the smaller size.

    Raises:
        InputError: a network has no maps.
    """
    pairs = pair_stages(student.stages(), teacher.stages())
    student_views, teacher_views = nn.ModuleList(), nn.ModuleList()
    for ours, theirs in pairs:
        size = [min(pair) for pair in zip(ours.shape[1:], theirs.shape[1:], strict=True)]
        student_views.append(AttentionMap(ours.shape[1:], size))
        teacher_views.append(AttentionMap(theirs.shape[1:], size))
    student_taps, teacher_taps = (tuple(Tap(layer.name) for layer in side) for side in zip(*pairs, strict=True))
    return Comparison(student_taps, teacher_taps, student_views, teacher_views, attention_loss, WEIGHT)


def pair_stages(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Each of the student's stages with the teacher's nearest in size; the teacher's count once, for the nearest."""
    best: dict[str, tuple[float, Layer, Layer]] = {}
    for ours in student:
        theirs, distance = nearest_size(ours, teacher)
        if theirs.name not in best or distance < best[theirs.name][0]:
            best[theirs.name] = (distance, ours, theirs)
    return [(ours, theirs) for _, ours, theirs in best.values()]
