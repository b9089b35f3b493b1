"""An export answers as its source does, in one portable file with the same bytes each time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from mlites.errors import InputError, ParityError
from mlites.export import OPSET, answers, check_parity, compact_, export_onnx
from mlites.models.build import build_model
from mlites.recipe import MLP, ResNet

RESNET = ResNet(family="resnet", depth=8, width=4)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    module = build_model(RESNET, (1, 8, 8), 3, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        module.train()(torch.randn(64, 1, 8, 8) * 2 + 1)  # so that normalization has statistics to fold
    return module.eval()


@pytest.fixture(scope="module")
def model(resnet: nn.Module) -> onnx.ModelProto:
    return export_onnx(resnet, (1, 8, 8))


def test_normalization_is_folded_and_operators_are_standard(model: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in model.graph.node]
    assert set(kinds) == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]


def test_signature_is_the_contracts(model: onnx.ModelProto) -> None:
    for value, name, sizes in ((model.graph.input[0], "input", [1, 8, 8]), (model.graph.output[0], "logits", [3])):
        batch, *rest = value.type.tensor_type.shape.dim
        assert value.name == name and batch.dim_param == "batch" and [dim.dim_value for dim in rest] == sizes
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert len(model.graph.input) == len(model.graph.output) == 1


def test_nothing_tells_of_source_code(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    for trace in (b".py", b"/mlites", b"packages", b"torch", b"aten", b"forward"):
        assert trace not in content
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_any_batch_is_answered_alike(resnet: nn.Module, model: onnx.ModelProto, rows: int) -> None:
    inputs = np.random.default_rng(0).normal(size=(rows, 1, 8, 8)).astype(np.float32)
    facts = check_parity(model, resnet, inputs)
    with torch.no_grad():
        expected = resnet(torch.from_numpy(inputs)).numpy()
    assert facts["agreement"] == 1.0 and facts["max_abs_difference"] < 1e-4
    np.testing.assert_allclose(answers(model, inputs), expected, atol=1e-4)


def test_bytes_are_the_same_in_every_process(model: onnx.ModelProto, resnet: nn.Module) -> None:
    program = (
        "import hashlib, sys\n"
        "from mlites.export import export_onnx\n"
        "from mlites.models.build import build_model\n"
        "module = build_model({'family': 'resnet', 'depth': 8, 'width': 4}, (1, 8, 8), 3, seed=0)\n"
        "model = export_onnx(module, (1, 8, 8))\n"
        "print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(), module.training)"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        outputs.add(done.stdout)
    assert len(outputs) == 1 and outputs.pop().endswith("True\n")


def test_mlp_takes_images_and_tables() -> None:
    for shape in ((1, 4, 4), (16,)):
        module = build_model(MLP(family="mlp", hidden=(8,)), shape, 3).eval()
        exported = export_onnx(module, shape)
        assert [node.op_type for node in exported.graph.node][-3:] == ["Gemm", "Relu", "Gemm"]
        inputs = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float32)
        assert check_parity(exported, module, inputs)["agreement"] == 1.0


def test_difference_is_refused_with_figures(resnet: nn.Module, model: onnx.ModelProto) -> None:
    altered = onnx.ModelProto()
    altered.CopyFrom(model)
    bias = next(one for one in altered.graph.initializer if list(one.dims) == [3])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 0.5, 0]), bias.name))
    inputs = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
    with pytest.raises(ParityError, match=r"on 64 rows: logits by up to 0.5 \(limit [\d.e-]+\), the same class in \d"):
        check_parity(altered, resnet, inputs)


def test_other_width_of_output_is_refused(resnet: nn.Module) -> None:
    other = export_onnx(build_model(RESNET, (1, 8, 8), 4).eval(), (1, 8, 8))
    with pytest.raises(ParityError, match=r"ONNX gives logits of shape \(5, 4\), PyTorch \(5, 3\)"):
        check_parity(other, resnet, np.zeros((5, 1, 8, 8), np.float32))


class FixedBatch(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows.reshape(2, 4)


def test_network_that_fixes_the_batch_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="to ONNX with an open batch: it fixes the number of rows") as caught:
        export_onnx(FixedBatch(), (4,))
    assert "\n" not in str(caught.value)


class Means(nn.Module):
    """Means over axes that are, and that are not, those of global pooling."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.mean((-1, -2), keepdim=True).flatten(1) + rows.mean((1, 3)).mean(1, keepdim=True)


def test_only_means_over_height_and_width_become_global_pooling() -> None:
    exported = export_onnx(Means(), (3, 4, 5))
    kinds = [node.op_type for node in exported.graph.node]
    assert kinds.count("GlobalAveragePool") == 1 and kinds.count("ReduceMean") == 2
    inputs = np.random.default_rng(0).normal(size=(6, 3, 4, 5)).astype(np.float32)
    assert check_parity(exported, Means(), inputs)["max_abs_difference"] < 1e-5


def test_names_read_by_a_nested_graph_are_kept() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["outer"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["input"], ["outer"]),
            helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch),
        ],
        "graph",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    compact_(model)
    rows = np.float32([[1, -2, 3]])
    assert np.array_equal(answers(model, rows), [[1, 0, 3]])
