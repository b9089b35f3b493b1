from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mlites.compression.cost import count_cost
from mlites.compression.quantization.dynamic import quantize_dynamic_int8
from mlites.compression.quantization.static import quantize_static_int8
from mlites.errors import InputError
from mlites.export import export_onnx
from mlites.hardware.macs import count_macs
from mlites.models.build import build_model
from tests.hardware.networks import make_model, make_weights

NETWORKS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"family": "mlp", "hidden": [32, 16]}, (10,)),
    ({"family": "mlp", "hidden": [12]}, (1, 8, 8)),
    ({"family": "resnet", "depth": 8, "width": 4}, (1, 8, 8)),
    ({"family": "resnet", "depth": 14, "width": 8}, (3, 9, 7)),
]


@pytest.mark.parametrize(("architecture", "shape"), NETWORKS)
def test_an_exported_network_has_the_macs_that_its_layers_count_in_fp32_and_in_int8(architecture, shape):
    module = build_model(architecture, shape, 3)
    model = export_onnx(module, shape)
    rows = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    expected = count_cost(module, shape)["macs"]
    assert count_macs(model, rows[:1]) == expected
    assert count_macs(quantize_static_int8(model, rows), rows[:1]) == expected
    assert count_macs(quantize_dynamic_int8(model), rows[:1]) == expected


def test_grouped_strided_and_transposed_convolutions_agree_with_the_formula():
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4),  # 6x6 -> 3x3: 8 * 9 * (1 * 9)
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # 3x3 -> 6x6: 8 * 9 inputs * (4 * 4)
        nn.Flatten(),
        nn.Linear(144, 5),  # 144 * 5
    )
    row = np.zeros((1, 4, 6, 6), np.float32)
    expected = 8 * 9 * 9 + 8 * 9 * 16 + 144 * 5
    assert count_macs(export_onnx(module, (4, 6, 6)), row) == expected == count_cost(module, (4, 6, 6))["macs"]


def test_products_of_activations_count_which_no_layer_would_tell():
    class Attention(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            weights = (inputs @ inputs.transpose(1, 2)).softmax(-1)
            return (weights @ inputs).mean(1)

    row = np.zeros((1, 7, 5), np.float32)
    assert count_macs(export_onnx(Attention(), (7, 5)), row) == 7 * 7 * 5 + 7 * 5 * 7


def test_the_count_is_of_one_row_and_leaves_the_model_as_it_was():
    model = make_model(make_weights((16,)))
    before = model.SerializeToString()
    assert count_macs(model, np.zeros((1, 6), np.float32)) == 6 * 16 + 16 * 3
    assert model.SerializeToString() == before


def one_node(node: onnx.NodeProto, weights: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


def test_weights_packed_to_four_bits_cost_as_many_macs_as_their_float_form():
    node = helper.make_node(
        "MatMulNBits", ["input", "w", "s"], ["logits"], domain="com.microsoft", K=32, N=5, bits=4, block_size=16
    )
    packed = {"w": np.zeros((5, 2, 8), np.uint8), "s": np.ones(10, np.float32)}
    assert count_macs(one_node(node, packed, [32]), np.zeros((1, 32), np.float32)) == 32 * 5


def test_a_transposed_left_side_is_counted_by_its_first_edge():
    node = helper.make_node("Gemm", ["input", "w"], ["logits"], transA=1)
    weights = {"w": np.zeros((1, 9), np.float32)}
    assert count_macs(one_node(node, weights, [4]), np.zeros((1, 4), np.float32)) == 4 * 9 * 1


def test_a_network_without_products_costs_none():
    node = helper.make_node("Relu", ["input"], ["logits"])
    assert count_macs(one_node(node, {}, [4]), np.zeros((1, 4), np.float32)) == 0


def test_a_model_that_cannot_run_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"the multiply-accumulates of the model cannot be counted: .*input") as caught:
        count_macs(make_model(make_weights()), np.zeros((1, 5), np.float32))
    assert "\n" not in str(caught.value)
