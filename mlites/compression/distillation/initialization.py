"""A student starts from its teacher's layers, where shapes allow: of a deeper teacher, from every k-th block.

Source: Sanh et al. (2019), "DistilBERT": the student takes one of two of the teacher's layers.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from mlites.errors import InputError


def initialize_from_teacher(student: nn.Module, teacher: nn.Module) -> tuple[nn.Module, dict[str, str], float]:
    """Copy the teacher's layers into a copy of the student, matched by names and shapes.

    Layers of the same name are matched. In a row of blocks (``nn.Sequential`` or ``nn.ModuleList``), those of equal
    shapes are matched at even distances: of four in the teacher and two in the student, the first and the third. A
    layer is copied whole, buffers included, or not at all.

    Args:
        student: left unchanged.
        teacher: of the same family, or with layers of the same names.

    Returns:
        The copy; the layers or blocks that were copied, with the teacher's name for each; and the fraction of the
        student's parameters in them.

    Raises:
        InputError: nothing fits.
    """
    started = copy.deepcopy(student)
    matches = list(_matches(started, teacher, "", ""))
    if not matches:
        raise InputError(
            f"initialize: teacher: no layer of the student ({type(student).__name__}) has the name and the shapes of "
            f"one of the teacher's ({type(teacher).__name__}); use initialize: random, or a student of the same family"
        )
    ours, theirs = started.state_dict(keep_vars=True), teacher.state_dict()
    copied = 0
    with torch.no_grad():
        for here, there, names in matches:
            for name in names:
                ours[here + name].copy_(theirs[there + name])
                copied += ours[here + name].numel() if isinstance(ours[here + name], nn.Parameter) else 0
    layers = {here.rstrip("."): there.rstrip(".") for here, there, _ in matches}
    return started, layers, copied / max(1, sum(parameter.numel() for parameter in started.parameters()))


def _matches(student: nn.Module, teacher: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, str, list[str]]]:
    """Prefix in the student, prefix in the teacher, and the names of the tensors below both, of what to copy."""
    shapes = _shapes(student)
    if shapes == _shapes(teacher):
        if shapes:
            yield ours, theirs, list(shapes)
        return
    own = _shapes(student, recurse=False)
    if own and own == _shapes(teacher, recurse=False):
        yield ours, theirs, list(own)
    blocks, sources = dict(student.named_children()), dict(teacher.named_children())
    partners = {name: name for name in blocks if name in sources}
    if isinstance(student, nn.Sequential | nn.ModuleList):
        partners |= _spread(blocks, sources)
    for name, source in partners.items():
        yield from _matches(blocks[name], sources[source], f"{ours}{name}.", f"{theirs}{source}.")


def _spread(blocks: dict[str, nn.Module], sources: dict[str, nn.Module]) -> dict[str, str]:
    """Each block with one of the sources of equal shapes, at even distances; where too few, the first ones."""
    groups: dict[tuple[tuple[str, tuple[int, ...]], ...], tuple[list[str], list[str]]] = {}
    for side, modules in enumerate((blocks, sources)):
        for name, module in modules.items():
            groups.setdefault(tuple(_shapes(module).items()), ([], []))[side].append(name)
    return {
        name: theirs[position * max(len(ours), len(theirs)) // len(ours)]
        for shapes, (ours, theirs) in groups.items()
        if shapes
        for position, name in enumerate(ours[: len(theirs)])
    }


def _shapes(module: nn.Module, *, recurse: bool = True) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a module's state, of its layers' too or of its own alone."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if recurse or "." not in name}
