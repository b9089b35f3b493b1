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


def left_in_float(
    model: onnx.ModelProto, layers: Sequence[Layer], kept: Collection[str], followers: Collection[str]
) -> frozenset[str]:
    """What is not worth integers when some layers stay in float: these, and what lies around them.

    A follower, such as the sum at the end of a residual block, computes in integers where a layer before it and one
    after it do, with followers alone in between: an island would cost a conversion on either shore. The model's input
    and output count as such layers. Rectifiers go with the node before them, with which they fuse.

    Args:
        model: prepared.
        layers: all of the scheme's.
        kept: names of those that stay in float.
        followers: operators that can follow layers into integers.

    Returns:
        Names of nodes, with those that never compute in integers.
    """
    nodes, names = model.graph.node, {layer.name for layer in layers}
    before = {one.name: True for one in model.graph.input}
    after = {one.name: True for one in model.graph.output}
    inside = {}
    for node in nodes:
        inside[node.name] = node.name not in kept if node.name in names else node.op_type in followers
        if node.name not in names:
            inside[node.name] &= any(before.get(name, False) for name in node.input)
        before |= dict.fromkeys(node.output, inside[node.name])
    for node in reversed(nodes):
        if node.name not in names:
            inside[node.name] &= any(after.get(name, False) for name in node.output)
        for name in node.input:
            after[name] = after.get(name, False) or inside[node.name]
    producers = {output: node.name for node in nodes for output in node.output}
    for node in nodes:
        if node.op_type in ("Relu", "Clip") and node.input[0] in producers:
            inside[node.name] = inside[producers[node.input[0]]]
    return frozenset(name for name, stays in inside.items() if not stays)


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
