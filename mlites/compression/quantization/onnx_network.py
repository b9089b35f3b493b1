"""An ONNX graph as a torch module: what is exported can be trained, operator by operator.

Training the exported graph and not its source makes every network that exports trainable with quantization points
where ONNX Runtime sets them, without tracing or rewriting the user's code.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from mlites.compression.quantization.onnx_operators import OPERATORS, Attributes, Result
from mlites.errors import InputError


@dataclass(frozen=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Attributes
    released: tuple[str, ...]  # values that no later node reads


class OnnxNetwork(nn.Module):
    """Computes what an ONNX graph of one input and one output computes, in float, with gradients.

    Args:
        model: of standard operators, weights inside.
        trained: initializers that become parameters; the others stay as they are.
        points: modules that a value passes on its way from where it arises, or is stored, to those who read it.

    Raises:
        InputError: the graph holds an operator that cannot be trained through; ``unknown_operators`` tells before.
    """

    def __init__(self, model: onnx.ModelProto, trained: Iterable[str], points: Mapping[str, nn.Module]) -> None:
        super().__init__()
        unknown = unknown_operators(model)
        if unknown:
            raise InputError(f"quantization-aware training knows no gradient of {', '.join(unknown)}")
        trained, graph = set(trained), model.graph
        (self._input,) = (one.name for one in graph.input)
        (self._output,) = (one.name for one in graph.output)
        self._stored: dict[str, str] = {}  # value's name -> attribute
        self._indices: dict[str, Tensor] = {}  # shapes, axes and the like: read by the processor, wherever we train
        self._points: dict[str, int] = {}
        self.points = nn.ModuleList()
        for number, one in enumerate(graph.initializer):
            values = torch.from_numpy(np.array(numpy_helper.to_array(one)))
            if not values.is_floating_point():
                self._indices[one.name] = values
                continue
            self._stored[one.name] = attribute = f"stored_{number}"
            if one.name in trained:
                self.register_parameter(attribute, nn.Parameter(values))
            else:
                self.register_buffer(attribute, values)
        for name, point in points.items():
            self._points[name] = len(self.points)
            self.points.append(point)
        self._nodes = _read_nodes(graph)

    def stored(self, name: str) -> Tensor:
        """An initializer of floats, as trained so far."""
        values: Tensor = getattr(self, self._stored[name])
        return values

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, *input_shape) -> logits (n, classes)."""
        values: dict[str, Result] = {self._input: self._pass(self._input, inputs)}
        for node in self._nodes:
            arguments = [self._value(name, values) for name in node.inputs]
            results = OPERATORS[node.operator](node.attributes, *arguments)
            for name, result in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False):
                values[name] = self._pass(name, result)
            for name in node.released:
                values.pop(name, None)
        logits = values[self._output]
        assert isinstance(logits, Tensor)
        return logits

    def _value(self, name: str, values: dict[str, Result]) -> Any:
        if name in values:
            return values[name]
        if name in self._stored:
            values[name] = self._pass(name, self.stored(name))
            return values[name]
        return self._indices.get(name)  # None: an optional input left out

    def _pass(self, name: str, value: Any) -> Any:
        return self.points[self._points[name]](value) if name in self._points else value


def unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Operators of the graph that ``OnnxNetwork`` has no form of, sorted."""
    return sorted({_operator(node) for node in model.graph.node} - OPERATORS.keys())


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _read_nodes(graph: onnx.GraphProto) -> list[_Node]:
    """Nodes in order, each with the values whose last reader it is: evaluation would keep all activations else."""
    kept = {one.name for one in graph.output}
    nodes: list[_Node] = []
    read: set[str] = set()
    for node in reversed(graph.node):
        last = [name for name in dict.fromkeys(node.input) if name and name not in read and name not in kept]
        unread = [name for name in node.output if name and name not in read and name not in kept]
        read.update(node.input)
        attributes = {one.name: _attribute(one) for one in node.attribute} | {"outputs": len(node.output)}
        nodes.append(_Node(_operator(node), tuple(node.input), tuple(node.output), attributes, (*last, *unread)))
    return nodes[::-1]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    return value.decode() if isinstance(value, bytes) else value
