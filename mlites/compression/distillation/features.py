"""What the inner layers of any torch network give: found by tracing, caught by hooks."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.errors import InputError


@dataclass(frozen=True)
class Tap:
    """Where in a network to listen: at the output of a layer of this dotted name, or at its first input."""

    layer: str
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class Layer:
    """One layer's output.

    Attributes:
        name: dotted.
        shape: of one row's output: (channels, height, width), (tokens, width) or (width,).
        composite: has layers of its own.
        progress: fraction of the network's layers with weights that have run when this one ends.
    """

    name: str
    shape: tuple[int, ...]
    composite: bool
    progress: float

    @property
    def depth(self) -> int:
        """How many layers this one lies in."""
        return self.name.count(".")


@dataclass(frozen=True)
class Trace:
    """What happens in a network when rows go through it.

    Attributes:
        who: the network in an error's words.
        classes: width of its output.
        layers: those that run once and give a float tensor with an entry a row, in the order in which they end.
        embedding: what the last layer with weights takes, and the shape of one row of it; None where that is the
            network's own input.
    """

    who: str
    classes: int
    layers: tuple[Layer, ...]
    embedding: tuple[Tap, tuple[int, ...]] | None

    def hidden(self) -> list[Layer]:
        """Layers between input and output: blocks where the network has them, else single layers.

        Raises:
            InputError: there are none.
        """
        inner = [layer for layer in self.layers if 0 < layer.progress < 1]
        blocks = [layer for layer in inner if layer.composite]
        if not inner:
            raise InputError(f"{self.who} has no layer between its input and its output; use soft-targets or decoupled")
        return blocks or inner

    def stages(self) -> list[Layer]:
        """The last map of each resolution, in the order in which they end; a whole block's rather than one inside it.

        Raises:
            InputError: no layer gives maps.
        """
        by_size: dict[tuple[int, ...], list[Layer]] = {}
        for layer in self.layers:
            if len(layer.shape) == 3 and layer.shape[1] * layer.shape[2] > 1:
                by_size.setdefault(layer.shape[1:], []).append(layer)
        if not by_size:
            raise InputError(
                f"{self.who} has no maps to compare: none of its layers gives (channels, height, width) with more than "
                "one position; use a method other than attention"
            )
        chosen = []
        for layers in by_size.values():
            blocks = [layer for layer in layers if layer.composite]
            least = min((layer.depth for layer in blocks), default=0)
            chosen.append([layer for layer in blocks if layer.depth == least][-1] if blocks else layers[-1])
        return sorted(chosen, key=self.layers.index)

    def embedded(self, method: str) -> tuple[Tap, tuple[int, ...]]:
        """Where the last hidden state is, and the shape of one row of it.

        Raises:
            InputError: the network has a single layer, which sees the rows themselves.
        """
        if self.embedding is None:
            raise InputError(f"{self.who} has a single layer with weights, so no hidden state for {method} to compare")
        return self.embedding


@dataclass(frozen=True)
class Comparison:
    """What a technique compares inside student and teacher.

    Attributes:
        student: where to listen in the student.
        teacher: the same in the teacher.
        student_views: for each of the student's taps, what turns its activation into what is compared; layers with
            weights train with the student.
        teacher_views: the same for the teacher, without weights.
        loss: (the student's views, the teacher's views) -> scalar.
        weight: of that loss in the whole, as the technique's source has it.
    """

    student: tuple[Tap, ...]
    teacher: tuple[Tap, ...]
    student_views: nn.ModuleList
    teacher_views: nn.ModuleList
    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
    weight: float


class Pool(nn.Module):
    """Mean over positions: maps (n, channels, h, w) and tokens (n, tokens, width) become vectors (n, width)."""

    def forward(self, values: Tensor) -> Tensor:
        """(n, ...) -> (n, width)."""
        return values.mean(1) if values.dim() == 3 else values.flatten(2).mean(2) if values.dim() > 3 else values


class Resize(nn.Module):
    """Maps to another size by the mean over areas: two matrix products, whose gradients every device sums alike."""

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        for name, old, new in zip(("rows", "columns"), before, after, strict=True):
            self.register_buffer(name, F.adaptive_avg_pool1d(torch.eye(old), new).T.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(..., h, w) -> (..., h', w')."""
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        resized: Tensor = rows @ maps.to(rows.dtype) @ columns.T
        return resized


def resize(before: Sequence[int], after: Sequence[int]) -> nn.Module:
    """What brings maps of one size (h, w) to another; nothing where they are equal."""
    return nn.Identity() if tuple(before) == tuple(after) else Resize(before, after)


def pooled_width(shape: Sequence[int]) -> int:
    """Width of what `Pool` makes of a row of this shape."""
    return shape[-1] if len(shape) == 2 else shape[0]


@contextmanager
def capture(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Within the context, a run of the module fills the mapping; of a layer that runs twice, the last run counts."""
    found: dict[Tap, Tensor] = {}

    def take(tap: Tap, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is None:
            raise InputError(f"layer {tap.layer} has no tensor as its {tap.side}, which distillation compares")
        found[tap] = tensor

    hooks = []
    for tap in taps:
        layer = module.get_submodule(tap.layer)
        if tap.side == "input":
            hooks.append(layer.register_forward_pre_hook(lambda _, given, tap=tap: take(tap, given)))
        else:
            hooks.append(layer.register_forward_hook(lambda _, __, value, tap=tap: take(tap, value)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def caught(found: Mapping[Tap, Tensor], taps: Sequence[Tap]) -> list[Tensor]:
    """What was caught, in the order of the taps.

    Raises:
        InputError: a layer did not run, as where a network takes other ways in training than in evaluation.
    """
    for tap in taps:
        if tap not in found:
            raise InputError(f"layer {tap.layer} did not run in training though it does in evaluation; leave it out")
    return [found[tap] for tap in taps]


def first_tensor(value: Any) -> Tensor | None:
    """The value, or the first entry of the tuple, list or mapping that it is, if that is a tensor."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def trace(module: nn.Module, inputs: Tensor, who: str) -> Trace:
    """Send rows through a network and note what every layer gives.

    Args:
        module: any network that turns rows into logits; left as it was.
        inputs: rows (n, ...) to try; two are enough.
        who: student or teacher.

    Raises:
        InputError: the network fails on the rows or does not answer with logits.
    """
    who = f"the {who} ({type(module).__name__})"
    two, three = (_run(module, inputs[torch.arange(count) % len(inputs)], who) for count in (2, 3))
    own = {name: list(layer.parameters(recurse=False)) for name, layer in module.named_modules()}
    weighted = [name for name, _ in two.calls if own[name]]
    layers, done = [], 0
    for position, (name, shape) in enumerate(two.calls):
        done += bool(own[name])
        if shape is None or three.calls[position : position + 1] != [(name, (3, *shape[1:]))]:
            continue
        if shape[0] == 2 and sum(other == name for other, _ in two.calls) == 1:
            composite = any(True for _ in module.get_submodule(name).children())
            layers.append(Layer(name, shape[1:], composite, done / max(1, len(weighted))))
    matrices = [name for name in weighted if any(parameter.dim() > 1 for parameter in own[name])]
    shape = two.inputs.get(matrices[-1]) if len(matrices) > 1 else None
    embedding = (Tap(matrices[-1], "input"), shape[1:]) if shape and shape[0] == 2 and len(shape) > 1 else None
    return Trace(who, two.classes, tuple(layers), embedding)


@dataclass(frozen=True)
class _Record:
    calls: list[tuple[str, tuple[int, ...] | None]]  # name, shape of the output
    inputs: dict[str, tuple[int, ...]]
    classes: int


def _run(module: nn.Module, inputs: Tensor, who: str) -> _Record:
    record = _Record([], {}, 0)

    def note(name: str, given: Any, value: Any) -> None:
        tensor, source = first_tensor(value), first_tensor(given)
        usable = tensor is not None and tensor.is_floating_point() and tensor.dim() > 1
        record.calls.append((name, tuple(tensor.shape) if tensor is not None and usable else None))
        if source is not None and source.is_floating_point():
            record.inputs[name] = tuple(source.shape)

    hooks = [
        layer.register_forward_hook(lambda _, given, value, name=name: note(name, given, value))
        for name, layer in module.named_modules()
        if name
    ]
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            answer = module(inputs)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise InputError(f"{who} fails on rows of shape {tuple(inputs.shape[1:])}: {reason}") from error
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(inputs):
        found = f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(f"{who} must answer {len(inputs)} rows with logits ({len(inputs)}, classes), got {found}")
    return _Record(record.calls, record.inputs, answer.shape[1])


def nearest_size(layer: Layer, others: Sequence[Layer]) -> tuple[Layer, float]:
    """Of several layers with maps, the one whose map has the nearest area; and the logarithm of the areas' ratio."""

    def distance(other: Layer) -> float:
        return abs(math.log(math.prod(other.shape[1:]) / math.prod(layer.shape[1:])))

    best = min(others, key=distance)
    return best, distance(best)
