import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mlites.compression.quantization.dynamic import quantize_dynamic_int8
from mlites.compression.quantization.static import quantize_static_int8
from mlites.errors import InputError
from mlites.export import export_onnx
from mlites.hardware.operators import Operator, profile_operators
from tests.hardware.networks import make_model, make_weights

SHAPE = (3, 12, 12)
ROWS = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
Save = Callable[[onnx.ModelProto | bytes], Path]


def convolutions(*channels: int, last: nn.Module | None = None) -> onnx.ModelProto:
    layers: list[nn.Module] = []
    for before, after in zip((3, *channels[:-1]), channels, strict=True):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 5)]
    torch.manual_seed(0)
    return export_onnx(nn.Sequential(*layers, *([last] if last else []), *tail).eval(), SHAPE)


def profile(path: Path, top: int = 99) -> list[Operator]:
    return profile_operators(path, ROWS, threads=1, batch=1, top=top)


def hints(path: Path, kind: str) -> list[str | None]:
    return [one.hint for one in profile(path) if one.op_type == kind]


def test_the_costliest_come_first_with_their_share_of_all(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = save(convolutions(64, 64))
    before = set(os.listdir(tmp_path)), set(os.listdir())
    found = profile(path)
    assert (set(os.listdir(tmp_path)), set(os.listdir())) == before  # nothing is left behind
    assert [one.us for one in found] == sorted((one.us for one in found), reverse=True)
    assert sum(one.share for one in found) == pytest.approx(1)
    assert [one.op_type for one in profile(path, top=1)] == ["Conv"]  # 64 to 64 channels: 30 times all others
    assert found[0].hint is None and found[0].to_json()["share"] == found[0].share


def test_channels_that_are_padded_are_told_with_what_is_computed(save: Save):
    assert "13 channels, not a multiple of 8: 16 are computed" in hints(save(convolutions(13, 32)), "Conv")


def test_channels_of_an_int8_convolution_that_fill_no_vector_are_told(save: Save):
    path = save(quantize_static_int8(convolutions(13, 32), ROWS))
    told = "channels, not a multiple of 8: the vectors of its kernel run partly empty"
    assert sorted(map(str, hints(path, "QLinearConv"))) == [f"13 {told}", f"13 {told}"]


def test_a_depthwise_convolution_is_told(save: Save):
    path = save(convolutions(32, last=nn.Conv2d(32, 32, 3, groups=32)))
    assert "depthwise: 9 multiply-accumulates for each value read" in hints(path, "Conv")


def test_quantization_that_the_runtime_did_not_fuse_is_told(save: Save):
    model = quantize_static_int8(convolutions(16), ROWS)
    for node in list(model.graph.node):  # without its own output quantized a convolution stays in float
        if node.op_type == "Conv":
            quantize = next(one for one in model.graph.node if node.output[0] in one.input)
            dequantize = next(one for one in model.graph.node if quantize.output[0] in one.input)
            for one in model.graph.node:
                one.input[:] = [node.output[0] if name == dequantize.output[0] else name for name in one.input]
            model.graph.node.remove(quantize)
            model.graph.node.remove(dequantize)
    path = save(model)
    kinds = {one.op_type: one.hint for one in profile(path)}
    (kind,) = kinds.keys() & {"Conv", "FusedConv"}
    assert kinds[kind] == f"QDQ not fused here: DequantizeLinear + {kind} in float"
    assert f"changes between float and INT8 for {kind}, which runs in float" in hints(path, "DequantizeLinear")


def test_dynamic_quantization_is_told(save: Save):
    found = profile_operators(
        save(quantize_dynamic_int8(make_model(make_weights((256,))))),
        np.ones((2, 6), np.float32),
        threads=1,
        batch=1,
        top=99,
    )
    assert any(one.hint and one.hint.startswith("dynamic quantization: ") for one in found)


def test_changes_of_layout_are_told(save: Save):
    path = save(quantize_static_int8(convolutions(16, 16), ROWS))
    assert "changes the layout for QLinearConv beside it" in hints(path, "Transpose")
    plain = [one for one in profile(save(convolutions(13, 16))) if one.op_type == "ReorderOutput"]
    assert plain and all(one.hint and one.hint.startswith("changes the layout between") for one in plain)


def test_an_activation_that_was_not_merged_is_told(save: Save):
    model = make_model(make_weights((32,)))
    model.graph.node[1].op_type = "Sigmoid"
    rows = np.ones((1, 6), np.float32)
    found = {one.op_type: one.hint for one in profile_operators(save(model), rows, threads=1, batch=1)}
    assert found["Sigmoid"] == "not merged into the MatMul before it"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a hint for x86 alone")
def test_signed_activations_are_told_on_x86(save: Save):
    weight = np.ones((16, 3, 3, 3), np.int8)
    names = {"xs": np.float32(0.1), "xz": np.int8(0), "ws": np.float32(0.1), "wz": np.int8(0)}
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in names.items()]
    stored += [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["input", "xs", "xz"], ["x"]),
            helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "xs", "xz"], ["y"], name="conv"),
            helper.make_node("DequantizeLinear", ["y", "xs", "xz"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        stored,
    )
    path = save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert hints(path, "QLinearConv") == ["signed INT8 activations: the INT8 kernels of x86 are made for unsigned ones"]


def test_a_model_that_does_not_run_is_told_in_one_line(save: Save):
    path = save(make_model(make_weights()))
    with pytest.raises(InputError, match="ONNX Runtime cannot profile it: ") as caught:
        profile_operators(path, np.ones((1, 5), np.float32), threads=1, batch=1)
    assert "\n" not in str(caught.value)
