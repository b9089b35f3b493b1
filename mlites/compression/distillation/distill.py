"""Distillation of any student from any teacher, by the technique that the options name."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mlites.compression.distillation.answers import TeacherAnswers
from mlites.compression.distillation.attention_transfer import compare_attention
from mlites.compression.distillation.control import compare_with_control
from mlites.compression.distillation.decoupled import decoupled_loss
from mlites.compression.distillation.features import Comparison, Tap, Trace, capture, caught, trace
from mlites.compression.distillation.hints import compare_hints
from mlites.compression.distillation.initialization import initialize_from_teacher
from mlites.compression.distillation.relational import compare_relations
from mlites.compression.distillation.soft_targets import soft_target_loss
from mlites.compression.distillation.triple_loss import compare_hidden_states
from mlites.compression.pruning.magnitude import zero_masks
from mlites.errors import InputError
from mlites.files import digest_bytes, digest_json
from mlites.recipe import Distill
from mlites.training.loop import Loss, TrainingData, evaluate, train
from mlites.training.resume import Epoch

COMPARISONS: dict[str, Callable[[Trace, Trace], Comparison]] = {
    "hints": compare_hints,
    "attention": compare_attention,
    "relational": compare_relations,
    "triple": compare_hidden_states,
}


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
    """Train a copy of the student to answer as its teacher does.

    Args:
        teacher: any network that turns the data's rows into logits; left unchanged.
        student: a new one, or one already trained, which then keeps what it knows; left unchanged.
        data: rows to train and to decide on.
        options: the technique, its weights, and the training.
        seed: of the order of the rows and of what the technique draws.
        identity: what else decides the result.
        keep_zeros: zeros of the student's weights stay zero.
        checkpoint: folder that outlives a killed run; with it, a later run goes on to the same weights.

    Returns:
        The student on the CPU, in evaluation mode; one entry an epoch; and facts: teacher_validation_accuracy,
        agreement (fraction of validation rows on which both give the same class), compared_layers (student's and
        teacher's name of each), initialized (student's layers -> teacher's) and initialized_fraction, and those of
        `compare_with_control`.

    Raises:
        InputError: the technique cannot work for this pair, with the network and the reason; or training diverged.
    """
    teacher = copy.deepcopy(teacher)
    networks = trace(teacher, data.inputs[:2], "teacher"), trace(student, data.inputs[:2], "student")
    if networks[0].classes != networks[1].classes:
        counts = " and ".join(f"{one.who} gives {one.classes} logits" for one in networks)
        raise InputError(f"teacher and student must know the same classes, but {counts}")
    facts: dict[str, Any] = {}
    if options.initialize == "teacher":
        student, facts["initialized"], facts["initialized_fraction"] = initialize_from_teacher(student, teacher)
    comparison = _comparison(options, *networks, seed)
    if comparison:
        pairs = zip(comparison.student, comparison.teacher, strict=True)
        facts["compared_layers"] = [[ours.layer, theirs.layer] for ours, theirs in pairs]
    accuracy, logits = evaluate(teacher, data.validation_inputs, data.validation_labels)
    facts["teacher_validation_accuracy"] = accuracy

    told: list[_Told] = []
    observed = _Observed(copy.deepcopy(student), comparison, lambda one: told.__setitem__(slice(None), [one]))
    answers = TeacherAnswers(
        teacher,
        data,
        options.training,
        seed,
        taps=comparison.teacher if comparison else (),
        views=list(comparison.teacher_views) if comparison else (),
        average=options.average_views,
    )
    masks = zero_masks(student) if keep_zeros else {}
    history = train(
        observed,
        data,
        options.training,
        seed,
        _loss(answers, options, comparison, observed, told),
        identity=_identity(identity, teacher, options),
        masks={f"student.{name}": mask for name, mask in masks.items()},
        checkpoint=checkpoint / "student" if checkpoint else None,
    )
    distilled = observed.student
    ours = evaluate(distilled, data.validation_inputs, data.validation_labels)[1]
    facts["agreement"] = float((ours.argmax(1) == logits.argmax(1)).float().mean())
    if options.control:
        place = checkpoint / "control" if checkpoint else None
        facts |= compare_with_control(distilled, student, data, options.training, seed, masks=masks, checkpoint=place)
    return distilled, history, facts


@dataclass(frozen=True)
class _Told:
    """What the student's last run in training tells the loss."""

    by: nn.Module
    views: list[Tensor]
    bf16: bool


class _Observed(nn.Module):
    """The student and the regressors that train with it; what is compared inside reaches the loss beside the logits."""

    def __init__(self, student: nn.Module, comparison: Comparison | None, tell: Callable[[_Told], None]) -> None:
        super().__init__()
        self.student = student
        self.taps: tuple[Tap, ...] = comparison.student if comparison else ()
        self.views = comparison.student_views if comparison else nn.ModuleList()
        self.tell = tell  # a function, which a copy of this module shares

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, ...) -> logits (n, classes)."""
        if not self.training:
            logits: Tensor = self.student(inputs)
            return logits
        with capture(self.student, self.taps) as found:
            logits = self.student(inputs)
        views = [view(value) for view, value in zip(self.views, caught(found, self.taps), strict=True)]
        self.tell(_Told(self, [view.float() for view in views], torch.is_autocast_enabled(inputs.device.type)))
        return logits


def _comparison(options: Distill, teacher: Trace, student: Trace, seed: int) -> Comparison | None:
    if options.method not in COMPARISONS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # regressors draw their first weights
        return COMPARISONS[options.method](teacher, student)


def _loss(
    answers: TeacherAnswers, options: Distill, comparison: Comparison | None, observed: _Observed, told: list[_Told]
) -> Loss:
    on_logits = decoupled_loss if options.method == "decoupled" else soft_target_loss
    weight = options.feature_weight or (comparison.weight if comparison else 0.0)

    def loss(student: Tensor, labels: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        (seen,) = told
        logits, views = answers.about(rows, batch, bf16=seen.bf16, rehearsal=seen.by is not observed)
        value = on_logits(
            student, logits, labels, options.temperature, options.soft_weight, options.training.label_smoothing
        )
        return value + weight * comparison.loss(seen.views, views) if comparison else value

    return loss


def _identity(identity: str, teacher: nn.Module, options: Distill) -> str:
    state = {name: tensor.cpu().contiguous().clone() for name, tensor in teacher.state_dict().items()}
    return digest_json([identity, digest_bytes(save(state)), options.model_dump(mode="json")])
