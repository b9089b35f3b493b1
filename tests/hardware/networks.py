"""Small ONNX models of known weights, and what they compute, in NumPy."""

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 6, 3

Weights = list[NDArray[np.float32]]


def make_weights(hidden: tuple[int, ...] = (16,), seed: int = 0) -> Weights:
    generator = np.random.default_rng(seed)
    sizes = (FEATURES, *hidden, CLASSES)
    return [generator.normal(0, 1, (before, after)).astype(np.float32) for before, after in pairwise(sizes)]


def make_model(weights: Weights, **changes: Any) -> onnx.ModelProto:
    """Matrix products with ReLU between them; ``changes``: name, batch, features, kind of the input."""
    name, batch, kind = (
        changes.get("name", "input"),
        changes.get("batch", "batch"),
        changes.get("kind", TensorProto.FLOAT),
    )
    features, classes = changes.get("features", weights[0].shape[0]), weights[-1].shape[1]
    nodes, value = [], name
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
        value = "cast"
    for index, _ in enumerate(weights):
        last = index == len(weights) - 1
        nodes.append(helper.make_node("MatMul", [value, f"weight{index}"], ["logits" if last else f"product{index}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"product{index}"], [f"active{index}"]))
            value = f"active{index}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, [batch, features])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weight, f"weight{index}") for index, weight in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def forward(weights: Weights, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same in NumPy."""
    for weight in weights[:-1]:
        inputs = np.maximum(inputs @ weight, 0)
    return inputs @ weights[-1]
