"""What a stored tensor claims is compared with what it holds, however it is stored."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.errors import InputError
from mlites.onnx_file import read_model, stored_tensors
from tests.hardware.networks import make_model, make_weights

Save = Callable[[onnx.ModelProto | bytes], Path]


def with_tensor(tensor: TensorProto) -> onnx.ModelProto:
    model = make_model(make_weights())
    model.graph.initializer.append(tensor)
    return model


def raw(kind: int, dims: list[int], size: int) -> TensorProto:
    return TensorProto(name="more", data_type=kind, dims=dims, raw_data=bytes(size))


@pytest.mark.parametrize(
    "tensor",
    [
        helper.make_tensor("more", TensorProto.FLOAT, [2, 3], range(6)),
        helper.make_tensor("more", TensorProto.COMPLEX64, [2], [1 + 2j, 3]),
        helper.make_tensor("more", TensorProto.STRING, [2], ["a", "b"]),
        helper.make_tensor("more", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("more", TensorProto.FLOAT16, [2], [1, 2]),
        helper.make_tensor("more", TensorProto.INT64, [], [7]),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "more"),
        raw(TensorProto.UINT4, [5], 3),
        raw(TensorProto.BFLOAT16, [5], 10),
        raw(99, [5], 1),  # of a kind not known here: the runtime refuses it
    ],
)
def test_tensors_that_hold_what_they_claim_are_read_in_every_form(save: Save, tensor: TensorProto):
    model = read_model(save(with_tensor(tensor)), alone=True)
    assert [one.name for one in stored_tensors(model)] == ["weight0", "weight1", "more"]


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (TensorProto(name="more", data_type=1, dims=[9], float_data=[1.0]), "claims [9] of float, but holds 1 values"),
        (TensorProto(name="more", data_type=1, dims=[2**62]), f"claims [{2**62}] of float, but holds 0 values"),
        (TensorProto(name="more", data_type=8, dims=[10**15], string_data=[b"a"]), "of string, but holds 1 values"),
        (raw(TensorProto.INT4, [2**40], 3), f"of int4, {2**39} bytes, but holds 3"),
        (raw(TensorProto.DOUBLE, [1] * 9 + [4], 8), "claims [1, 1, 1, 1, 1, 1, 1, 1, ...] of double, 32 bytes"),
    ],
)
def test_tensors_that_claim_more_than_they_hold_are_refused(save: Save, tensor: TensorProto, told: str):
    path = save(with_tensor(tensor))
    with pytest.raises(InputError) as caught:
        read_model(path, alone=True)
    assert str(caught.value).startswith(f"{path}: weight 'more' ") and told in str(caught.value)


def test_sparse_weights_and_those_of_branches_are_seen(save: Save):
    model = make_model(make_weights())
    value, place = np.ones(1, np.float32), np.zeros(1, np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(value, "value"), numpy_helper.from_array(place, "place"), [4]
    )
    model.graph.sparse_initializer.append(sparse)
    branch = helper.make_graph([], "branch", [], [], [numpy_helper.from_array(value, "inner")])
    model.graph.node.append(helper.make_node("If", ["go"], ["chosen"], then_branch=branch, else_branch=branch))
    found = [one.name for one in stored_tensors(read_model(save(model), alone=True))]
    assert found == ["weight0", "weight1", "value", "place", "inner", "inner"]


def test_a_place_beside_the_model_that_is_no_number_is_told(save: Save):
    tensor = TensorProto(name="more", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="model.onnx")
    tensor.external_data.add(key="offset", value="far")
    with pytest.raises(InputError, match=r"lies in model\.onnx at an offset that is no number"):
        read_model(save(with_tensor(tensor)), alone=False)


def test_a_file_beyond_what_protobuf_holds_is_not_read(tmp_path: Path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # takes no room on disk
    with pytest.raises(InputError, match="3072 MiB; an ONNX file holds at most 2 GiB, weights beside it"):
        read_model(path, alone=True)
