"""Distillation of any student from any teacher, by the method that the options name."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from mlites.compression.distillation.soft_targets import distillation_loss
from mlites.compression.pruning.magnitude import zero_masks
from mlites.recipe import Distill
from mlites.training.loop import TrainingData, train
from mlites.training.resume import Epoch


def distill_module(
    teacher: nn.Module,
    student: nn.Module,
    data: TrainingData,
    options: Distill,
    seed: int,
    *,
    identity: str = "",
    keep_zeros: bool = False,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, list[Epoch], dict[str, Any]]:
    """Train a copy of the student to answer as its teacher does."""
    teacher, student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
    loss = distillation_loss(
        teacher,
        data.inputs,
        augmented=bool(options.training.augmentation),
        temperature=options.temperature,
        soft_weight=options.soft_weight,
        label_smoothing=options.training.label_smoothing,
    )
    history = train(
        student,
        data,
        options.training,
        seed,
        loss,
        identity=identity,
        masks=zero_masks(student) if keep_zeros else None,
        checkpoint=checkpoint / "student" if checkpoint else None,
    )
    return student, history, {}
