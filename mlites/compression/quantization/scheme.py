"""One way to quantize one model, with any of its layers left in float: what sensitivity and rollback work on."""

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

import mlites.inference  # noqa: F401  # first, as it turns the runtime's telemetry off

from onnxruntime.quantization import quant_pre_process  # isort: skip
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer  # isort: skip


@dataclass(frozen=True)
class Layer:
    """A node that a scheme can quantize or leave in float.

    Attributes:
        name: of the node in the prepared model.
        label: for people: operator, place among the layers and shape of the weight, as exported models name nothing.
        weights: numbers in its constant input; 0 where it has none.
    """

    name: str
    label: str
    weights: int


@dataclass(frozen=True)
class Scheme:
    """What quantizes a model.

    Attributes:
        layers: those that it quantizes, in the model's order.
        build: names of the layers to leave in float -> the quantized model.
        facts: what is the same for every choice, for the model card.
    """

    layers: tuple[Layer, ...]
    build: Callable[[frozenset[str]], onnx.ModelProto]
    facts: dict[str, str | int | float | bool | dict[str, int]]


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse what fuses in float, infer shapes, and give every node a name of its own.

    By way of a file, as the library empties a model in memory.
    """
    with tempfile.TemporaryDirectory() as work, quiet():
        given, fused = Path(work, "given.onnx"), Path(work, "fused.onnx")
        given.write_bytes(model.SerializeToString())
        quant_pre_process(given, fused, skip_symbolic_shape=True)
        prepared: onnx.ModelProto = load_model_with_shape_infer(fused)
    for index, node in enumerate(prepared.graph.node):
        node.name = f"{node.op_type}_{index}"
    return prepared


def find_layers(model: onnx.ModelProto, operators: Collection[str]) -> tuple[Layer, ...]:
    """The nodes of these operators in a prepared model."""
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    found: list[Layer] = []
    for node in model.graph.node:
        if node.op_type in operators:
            source = next((name for name in node.input if len(shapes.get(name, ())) > 1), "")
            shape = f" ({'x'.join(map(str, shapes[source]))})" if source else ""
            found.append(
                Layer(node.name, f"{node.op_type} {len(found) + 1}{shape}", math.prod(shapes[source]) if source else 0)
            )
    return tuple(found)


def constants(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the tensors stored in a model."""
    return frozenset(one.name for one in model.graph.initializer)


def left_in_float(model: onnx.ModelProto, layers: Sequence[Layer], kept: frozenset[str]) -> frozenset[str]:
    """The layers kept in float, and the nodes around them that would be islands of integers in between.

    Rectifiers go with the node before them, with which they fuse. Other nodes stay integer where a layer before them
    and one after them are; nodes with no layer on a side count as if there were one.
    """
    graph, names = model.graph, {layer.name for layer in layers}
    producers = {output: node for node in graph.node for output in node.output}
    before: dict[str, set[bool]] = {}  # tensor -> whether the nearest layers before it are integer
    after: dict[str, set[bool]] = {}
    inside: dict[str, bool] = {}
    for node in graph.node:
        inherited = {each for name in node.input for each in before.get(name, ())}
        inside[node.name] = not inherited or any(inherited)
        for name in node.output:
            before[name] = {node.name not in kept} if node.name in names else inherited
    for node in reversed(graph.node):
        inherited = {each for name in node.output for each in after.get(name, ())}
        inside[node.name] = inside[node.name] and (not inherited or any(inherited))
        for name in node.input:
            after.setdefault(name, set()).update({node.name not in kept} if node.name in names else inherited)
    excluded = set(kept) | {name for name, is_inside in inside.items() if not is_inside and name not in names}
    for node in graph.node:
        if node.op_type in ("Relu", "Clip") and node.input[0] in producers:
            source = producers[node.input[0]].name
            excluded = excluded | {node.name} if source in excluded else excluded - {node.name}
    return frozenset(excluded)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's advice, which recommends what is done here already, and its progress off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
