import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.errors import InputError
from mlites.inference import check_file, check_signature, explain, infer, open_session
from tests.hardware.networks import CLASSES, FEATURES, make_model, make_weights

Save = Callable[[onnx.ModelProto | bytes], Path]


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_unknown_operator() -> onnx.ModelProto:
    model = make_model(make_weights())
    model.graph.node[0].op_type = "Frobnicate"
    return model


def with_huge_weight() -> onnx.ModelProto:
    model = make_model(make_weights())
    model.graph.initializer[0].dims[0] = 10**12
    return model


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (with_unknown_operator(), "Frobnicate"),
        (with_huge_weight(), "cannot load it"),
        (b"", "No graph was found"),
    ],
)
def test_a_model_that_the_runtime_refuses_gives_one_line_with_its_reason(
    save: Save, content: onnx.ModelProto | bytes, told: str
):
    path = save(content)
    check_file(path)
    message = refusal(lambda: open_session(path, 1))
    assert message.startswith(f"{path}: ONNX Runtime cannot load it: ") and told in message


def test_a_truncated_file_is_told_from_a_missing_one(save: Save, tmp_path: Path):
    path = save(make_model(make_weights()).SerializeToString()[:-7])
    assert refusal(lambda: check_file(path)) == f"{path}: not an ONNX file, or cut short; export the model again"
    missing = tmp_path / "missing.onnx"
    assert refusal(lambda: check_file(missing)) == f"{missing}: cannot read the model: No such file or directory"


def external(tensor: TensorProto, location: str) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


@pytest.mark.parametrize("location", ["../elsewhere.bin", "/etc/hostname", "beside.bin"])
def test_weights_in_another_file_are_refused_wherever_it_lies(save: Save, location: str):
    model = make_model(make_weights())
    external(model.graph.initializer[1], location)
    path = save(model)
    (path.parent / "beside.bin").write_bytes(b"\0" * 4 * 16 * CLASSES)
    message = refusal(lambda: check_file(path))
    assert message == (
        f"{path}: weight 'weight1' lies in another file ({location}); save the model with all weights inside model.onnx"
    )


@pytest.mark.parametrize("place", ["attribute", "branch", "function"])
def test_weights_in_another_file_are_found_inside_nodes_branches_and_functions(save: Save, place: str):
    hidden = external(numpy_helper.from_array(np.ones(4, np.float32), "hidden"), "../elsewhere.bin")
    constant = helper.make_node("Constant", [], ["value"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(hidden)
    model = make_model(make_weights())
    if place == "attribute":
        model.graph.node.append(constant)
    elif place == "branch":
        branch = helper.make_graph([constant], "branch", [], [])
        model.graph.node.append(
            helper.make_node("If", ["condition"], ["chosen"], then_branch=branch, else_branch=branch)
        )
    else:
        opset = helper.make_opsetid("", 17)
        model.functions.append(helper.make_function("own", "f", [], ["value"], [constant], [opset]))
    path = save(model)
    assert "weight 'hidden' lies in another file" in refusal(lambda: check_file(path))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (make_model(make_weights(), name="x"), "inputs are x; the data needs one float32 input 'input' [batch, 6]"),
        (make_model(make_weights(), kind=TensorProto.DOUBLE), "input is tensor(double); the data needs"),
        (make_model(make_weights(), batch=1), "input has shape [1, 6]; the data needs one float32 input"),
        (make_model([np.ones((5, 3), np.float32)]), "input has shape [batch, 5]; the data needs"),
        (make_model([np.ones((6, 4), np.float32)]), "output logits is tensor(float) [batch, 4]; the data needs"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_told_what_would(save: Save, model: onnx.ModelProto, told: str):
    path = save(model)
    session = open_session(path, 1)
    assert f"{path}: {told}" in refusal(lambda: check_signature(session, path, (FEATURES,), CLASSES))


def test_an_output_of_another_name_is_refused(save: Save):
    model = make_model(make_weights())
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    path = save(model)
    session = open_session(path, 1)
    message = refusal(lambda: check_signature(session, path, (FEATURES,), CLASSES))
    assert "outputs are scores; the data needs float32 output 'logits' [batch, 3]" in message


def test_a_model_with_named_or_unknown_dimensions_fits(save: Save):
    model = make_model(make_weights(), batch=None)
    path = save(model)
    check_signature(open_session(path, 1), path, (FEATURES,), CLASSES)


def test_nan_answers_are_refused_with_their_count(save: Save):
    weights = make_weights(())
    weights[0][0, 0] = np.nan
    path = save(make_model(weights))
    message = refusal(lambda: infer(open_session(path, 1), path, np.ones((4, FEATURES), np.float32)))
    assert message == f"{path}: answers with NaN or infinity for 4 of 4 rows"


def test_a_model_that_fails_while_it_runs_gives_one_line(save: Save):
    model = make_model(make_weights())
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 1], np.int64), "shape"))
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["logits"]))
    path = save(model)
    message = refusal(lambda: infer(open_session(path, 1), path, np.ones((4, FEATURES), np.float32)))
    assert re.match(re.escape(f"{path}: ONNX Runtime cannot run it on 4 rows: ") + ".*shape", message)


def test_a_model_that_answers_another_number_of_rows_is_refused(save: Save):
    model = make_model(make_weights())
    model.graph.node[-1].output[0] = "each"
    model.graph.node.append(helper.make_node("ReduceMean", ["each"], ["logits"], axes=[0], keepdims=1))
    path = save(model)
    message = refusal(lambda: infer(open_session(path, 1), path, np.ones((4, FEATURES), np.float32)))
    assert "answers 4 rows with logits of shape (1, 3)" in message


def test_a_long_message_of_the_runtime_is_cut():
    assert explain("[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed: a\n  b.") == "a b"
    assert len(explain("x" * 1000)) == 240
