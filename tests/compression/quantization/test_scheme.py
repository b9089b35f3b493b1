"""What stays in float with a layer, and the names that people read."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.compression.quantization.scheme import Layer, find_layers, left_in_float, prepare
from mlites.compression.quantization.static import FOLLOWERS, LAYERS


def graph_of(*nodes: tuple[str, str, str]) -> onnx.ModelProto:
    """Nodes as (operator, inputs, output), each named for its output; weights are ``w``."""
    made = [helper.make_node(kind, inputs.split(), [output], output) for kind, inputs, output in nodes]
    rows = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    return helper.make_model(helper.make_graph(made, "g", [rows], [logits], [weight]))


def float_nodes(model: onnx.ModelProto, *kept: str) -> set[str]:
    layers = tuple(one for one in find_layers(model, LAYERS) if one.weights)
    return set(left_in_float(model, layers, kept, FOLLOWERS))


RESIDUAL = graph_of(
    ("MatMul", "input w", "a"),
    ("Relu", "a", "b"),
    ("MatMul", "b w", "c"),
    ("Add", "c b", "d"),
    ("Relu", "d", "e"),
    ("MatMul", "e w", "logits"),
)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((), set()),
        (("a",), {"a", "b"}),  # the sum still has integers on both sides
        (("c",), {"c"}),
        (("logits",), {"logits", "d", "e"}),
        (("a", "c"), {"a", "b", "c", "d", "e"}),
        (("a", "c", "logits"), {"a", "b", "c", "d", "e", "logits"}),
    ],
)
def test_no_island_of_integers_is_left(kept: tuple[str, ...], expected: set[str]) -> None:
    assert float_nodes(RESIDUAL, *kept) == expected


def test_products_of_activations_and_what_lies_between_them_stay_in_float() -> None:
    model = graph_of(
        ("MatMul", "input w", "q"),
        ("Add", "q q", "shifted"),
        ("MatMul", "shifted q", "scores"),
        ("Transpose", "scores", "turned"),
        ("Softmax", "turned", "soft"),
        ("MatMul", "soft w", "logits"),
    )
    assert float_nodes(model) == {"shifted", "scores", "turned", "soft"}


def test_labels_name_operator_place_and_shape(networks: dict[str, onnx.ModelProto]) -> None:
    layers = find_layers(prepare(networks["resnet"]), LAYERS)
    assert [layers[0].label, layers[-1].label] == ["Conv 1 (8x1x3x3)", "Gemm 10 (4x32)"]
    assert [layers[0].weights, layers[-1].weights] == [72, 128]
    assert find_layers(graph_of(("MatMul", "input input", "logits")), LAYERS) == (Layer("logits", "MatMul 1", 0),)
