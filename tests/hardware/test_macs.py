from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlites.compression.cost import count_cost
from mlites.compression.quantization.dynamic import quantize_dynamic_int8
from mlites.compression.quantization.static import quantize_static_int8
from mlites.errors import InputError
from mlites.export import export_onnx
from mlites.hardware.macs import count_macs, count_work
from mlites.models.build import build_model
from mlites.recipe import Architecture
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


FAMILIES: dict[str, list[tuple[dict[str, Any], tuple[int, ...]]]] = {
    "mlp": [({"hidden": [32, 16]}, (10,))],
    "lenet": [({}, (1, 28, 28))],
    "resnet": [({"depth": 8, "width": 8}, (3, 32, 32))],
    "convnet": [({"channels": [12, 24, 20], "kernels": [5, 3, 1], "head": "full"}, (1, 28, 28))],
    "separable": [({"width": 0.5, "depth": 0.3}, (3, 32, 32))],
    "mobilenet-v2": [({"width": 0.5, "depth": 0.3}, (3, 32, 32))],
    "mobilenet-v3": [({"depth": 0.3, "resolution": 40}, (3, 32, 32))],
    "efficientnet": [({"width": 0.5, "depth": 0.25, "compound": 1}, (3, 32, 32))],
    "factory": [({"factory": "torch.nn:Linear", "options": {"in_features": 10, "out_features": 3}}, (10,))],
}


def test_every_family_is_compared_with_torch():
    assert set(FAMILIES) == {one.model_fields["family"].annotation.__args__[0] for one in shipped_families()}


def shipped_families() -> tuple[Any, ...]:
    return get_args(get_args(Architecture)[0])


def flops_by_torch(module: nn.Module, inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("family", "case"), [(family, case) for family, cases in FAMILIES.items() for case in cases])
def test_the_count_agrees_with_torchs_flop_counter_within_one_percent(
    family: str, case: tuple[dict[str, Any], tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
):
    options, shape = case
    monkeypatch.setenv("MLITES_TRUSTED_FACTORIES", "torch.nn:Linear")
    module = build_model({"family": family, **options}, shape, 3)
    work = count_work(export_onnx(module, shape), np.zeros((1, *shape), np.float32))
    assert work.flops == pytest.approx(flops_by_torch(module, torch.zeros(1, *shape)), rel=0.01)
    assert work.int8_macs == 0 and work.not_counted == ()


def test_a_batch_takes_its_rows_times_as_many_macs_and_weights_are_read_once():
    model = make_model(make_weights((64,)))
    one, four = (count_work(model, np.zeros((rows, 6), np.float32)) for rows in (1, 4))
    assert four.macs == 4 * one.macs
    weights = 4 * (6 * 64 + 64 * 3)
    assert one.bytes == weights + 4 * (6 + 64 + 64 + 64 + 64 + 3) - (0 if one.kernels == 3 else 2 * 4 * 64)
    assert four.bytes == weights + 4 * (one.bytes - weights)


def test_int8_reads_a_quarter_and_computes_in_integers():
    module = build_model({"family": "convnet", "channels": [16, 32], "strides": [1, 2]}, (8, 16, 16), 3)
    model = export_onnx(module, (8, 16, 16))
    rows = np.random.default_rng(0).normal(size=(4, 8, 16, 16)).astype(np.float32)
    plain, quantized = (count_work(one, rows[:1]) for one in (model, quantize_static_int8(model, rows)))
    assert quantized.macs == plain.macs and plain.int8_macs == 0
    assert quantized.int8_macs == quantized.macs  # every layer runs in integers
    assert quantized.bytes < 0.6 * plain.bytes


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


def test_loops_are_counted_as_often_as_they_go_round():
    body = helper.make_graph(
        [helper.make_node("MatMul", ["before", "square"], ["after"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["turns", "true", "input"], ["logits"], body=body)
    weights = {"turns": np.array(5, np.int64), "true": np.array(True), "square": np.ones((4, 4), np.float32)}
    assert count_macs(one_node(node, weights, [4]), np.zeros((2, 4), np.float32)) == 5 * 2 * 4 * 4


def test_recurrent_layers_count_every_step():
    node = helper.make_node("LSTM", ["input", "w", "r"], ["", "logits"], hidden_size=5)
    weights = {"w": np.zeros((1, 20, 7), np.float32), "r": np.zeros((1, 20, 5), np.float32)}
    model = one_node(node, weights, [2, 7])
    per_step = 4 * 5 * 7 + 4 * 5 * 5  # four gates of five units
    assert count_macs(model, np.zeros((3, 2, 7), np.float32)) == 3 * 2 * per_step


def test_attention_counts_as_its_two_products_by_torch():
    class Heads(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return (inputs @ inputs.mT).softmax(-1) @ inputs

    rows = torch.zeros(1, 4, 9, 8)
    node = helper.make_node("Attention", ["input", "input", "input"], ["logits"])
    model = one_node(node, {}, [4, 9, 8])
    model.opset_import[0].version = 23
    model.ir_version = 11
    assert 2 * count_macs(model, rows.numpy()) == flops_by_torch(Heads(), rows)


def test_operators_whose_products_are_not_counted_are_named():
    node = helper.make_node("Einsum", ["input", "w"], ["logits"], equation="ij,jk->ik")
    work = count_work(one_node(node, {"w": np.ones((4, 2), np.float32)}, [4]), np.zeros((1, 4), np.float32))
    assert work.not_counted == ("Einsum",) and work.macs == 0
