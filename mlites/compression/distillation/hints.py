"""Hints: a middle layer of the student predicts a middle layer of the teacher through a regressor.

Source: Romero et al. (2015), "FitNets: Hints for Thin Deep Nets". The paper trains up to the middle with the hint
alone, then the whole with soft targets. Here both losses act at once, as in Tian, Krishnan & Isola (2020), "Contrastive
Representation Distillation", from where the weight is: so the student gets as many steps as the control without a
teacher, under one schedule, and a killed run goes on from one place.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.distillation.features import Comparison, Layer, Pool, Tap, Trace, pooled_width, resize

WEIGHT = 100.0


class Regressor(nn.Module):
    """A linear layer over channels, which for maps is a 1x1 convolution, and batch normalization.

    Without the normalization, as in the paper, plain gradient descent at our learning rates diverges where a hint is
    large, such as that of a layer before its ReLU.
    """

    def __init__(self, width: int, hint_width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, hint_width, bias=False)
        self.norm = nn.BatchNorm1d(hint_width)

    def forward(self, values: Tensor) -> Tensor:
        """(n, width, h, w), (n, tokens, width) or (n, width) -> the same with the hint's width."""
        rows = values.movedim(1, -1) if values.dim() == 4 else values
        mixed = self.mix(rows)
        normed: Tensor = self.norm(mixed.flatten(0, -2)).view_as(mixed)
        return normed.movedim(-1, 1) if values.dim() == 4 else normed


def hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference; the paper has half of its sum, a factor that the weight takes in.

    Args:
        student: what the regressor makes of its layer, one tensor (n, ...).
        teacher: its layer, one tensor of the same shape.
    """
    return F.mse_loss(student[0], teacher[0])


def compare_hints(teacher: Trace, student: Trace) -> Comparison:
    """The student's middle layer with the teacher's layer of the same map size that is nearest to its middle.

    Maps meet maps at the smaller size, tokens meet as many tokens, anything else meets as means over positions.

    Raises:
        InputError: a network has no inner layer.
    """
    ours = _middle(student.hidden())
    alike = [layer for layer in teacher.hidden() if len(layer.shape) == 3 and layer.shape[1:] == ours.shape[1:]]
    theirs = _middle(alike or teacher.hidden())
    regressor, view = _views(ours.shape, theirs.shape)
    views = nn.ModuleList([regressor]), nn.ModuleList([view])
    return Comparison((Tap(ours.name),), (Tap(theirs.name),), *views, hint_loss, WEIGHT)


def _middle(layers: Sequence[Layer]) -> Layer:
    return min(layers, key=lambda layer: (abs(layer.progress - 0.5), layer.depth))


def _views(ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """What the student's activation and the teacher's go through to meet."""
    if len(ours) == len(theirs) == 3:
        size = [min(pair) for pair in zip(ours[1:], theirs[1:], strict=True)]
        return nn.Sequential(resize(ours[1:], size), Regressor(ours[0], theirs[0])), resize(theirs[1:], size)
    if len(ours) == len(theirs) == 2 and ours[0] == theirs[0]:
        return Regressor(ours[1], theirs[1]), nn.Identity()
    return nn.Sequential(Pool(), Regressor(pooled_width(ours), pooled_width(theirs))), Pool()
