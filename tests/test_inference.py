import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.errors import InputError
from mlites.inference import Signature, check_file, check_signature, explain, infer, open_session, read_signature
from tests.hardware.networks import CLASSES, FEATURES, forward, make_model, make_weights

Save = Callable[[onnx.ModelProto | bytes], Path]


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = make_model(make_weights())
    change(model)
    return model


def ending_in(operator: str, shape: list[int], **attributes: Any) -> onnx.ModelProto:
    """The logits put into a shape that is known only while the model runs: each edge times the batch of one."""
    model = make_model(make_weights())
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "edges"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    graph.node[-1].output[0] = "small"
    graph.node.append(helper.make_node("Shape", ["input"], ["sizes"]))
    graph.node.append(helper.make_node("Gather", ["sizes", "zero"], ["rows"]))
    graph.node.append(helper.make_node("Mul", ["edges", "rows"], ["shape"]))
    graph.node.append(helper.make_node(operator, ["small", "shape"][-attributes.pop("inputs", 2) :], ["logits"]))
    del graph.output[0].type.tensor_type.shape.dim[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    return model


def of_any_shape(node: onnx.NodeProto) -> onnx.ModelProto:
    """A model of one node before the layers, computed when it is loaded and of no use to them."""
    model = make_model(make_weights())
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**21, 2**21], np.int64), "shape"))
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    return model


def endless_growth() -> onnx.ModelProto:
    """A loop whose value doubles each time round."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("before", "after")]
    counter = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    going = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    body = helper.make_graph(
        [
            helper.make_node("Concat", ["before", "before"], ["after"], axis=1),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [counter, going[0], value[0]],
        [going[1], value[1]],
    )
    model = make_model(make_weights())
    model.graph.initializer.append(numpy_helper.from_array(np.array(40, np.int64), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node[-1].output[0] = "once"
    model.graph.node.append(helper.make_node("Loop", ["turns", "true", "once"], ["logits"], body=body))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


REFUSED: dict[str, tuple[onnx.ModelProto | bytes, str]] = {
    "an empty file": (b"", "holds no graph"),
    "text": (b"name: digits\n" * 9, "not an ONNX file, or cut short"),
    "a truncated file": (make_model(make_weights()).SerializeToString()[:-7], "not an ONNX file, or cut short"),
    "a file cut in half": (make_model(make_weights()).SerializeToString()[:300], "not an ONNX file, or cut short"),
    "an unknown operator": (changed(lambda m: setattr(m.graph.node[0], "op_type", "Frobnicate")), "Frobnicate"),
    "an unknown domain": (changed(lambda m: setattr(m.graph.node[0], "domain", "org.acme")), "org.acme"),
    "an opset of the future": (changed(lambda m: setattr(m.opset_import[0], "version", 99)), "Opset 99"),
    "a format of the future": (changed(lambda m: setattr(m, "ir_version", 99)), "IR version: 99"),
    "no outputs": (changed(lambda m: m.graph.ClearField("output")), "names no output"),
    "an output that nothing makes": (changed(lambda m: setattr(m.graph.output[0], "name", "x")), "Graph output (x)"),
    "a cycle": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "logits")), "not acyclic"),
    "an input from nowhere": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere")), "'nowhere'"),
    "terabytes of weights": (
        changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**12)),
        "weight 'weight0' claims [1000000000000, 16] of float, 64000000000000 bytes, but holds 384",
    ),
    "a negative shape": (changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -1)), "has shape [-1, 16]"),
    "a sparse weight of terabytes": (
        changed(
            lambda m: m.graph.sparse_initializer.append(
                helper.make_sparse_tensor(
                    numpy_helper.from_array(np.ones(1, np.float32), "sparse"),
                    numpy_helper.from_array(np.zeros(1, np.int64), "at"),
                    [2**40],
                )
            )
        ),
        "4398046511104 bytes exceeds",
    ),
    "a huge Expand": (ending_in("Expand", [10**6, 10**6, 1]), "MiB of memory"),
    "a huge ConstantOfShape": (ending_in("ConstantOfShape", [10**6, 10**6], inputs=1), "MiB of memory"),
    "a huge constant": (of_any_shape(helper.make_node("ConstantOfShape", ["shape"], ["big"])), "MiB of memory"),
    "a huge Tile": (ending_in("Tile", [10**7, 10**6]), "MiB of memory"),
    "a loop that grows": (endless_growth(), "MiB of memory"),
    "a huge input": (make_model([np.ones((6, 3), np.float32)], features=2**42), "ONNX Runtime cannot load it"),
}


def test_bad_files_give_one_line_each_within_memory_limits_and_the_caller_lives_on(tmp_path: Path):
    for index, (content, _) in enumerate(REFUSED.values()):
        (tmp_path / f"{index}.onnx").write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    program = (
        "import sys, pathlib\n"
        "from mlites.errors import InputError\n"
        "from mlites.inference import check_file\n"
        "for path in sys.argv[1:]:\n"
        "    try: check_file(pathlib.Path(path))\n"
        "    except InputError as error: print(error)\n"
        "    else: print(path, 'accepted')\n"
        "peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(peak[0].strip())\n"
    )
    paths = [str(tmp_path / f"{index}.onnx") for index in range(len(REFUSED))]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    *lines, peak = done.stdout.splitlines()
    assert len(lines) == len(REFUSED)
    for path, line, (name, (_, told)) in zip(paths, lines, REFUSED.items(), strict=True):
        assert line.startswith(f"{path}: ") and told in line, (name, line)
    assert int(peak.split()[1]) < 400 * 1024  # KiB; the packages alone take some 100 MiB


def test_what_is_no_file_is_told(tmp_path: Path):
    assert refusal(lambda: check_file(tmp_path)) == f"{tmp_path}: not a file; give an ONNX file"


def test_memory_that_real_rows_take_counts(save: Save):
    path = save(ending_in("Tile", [1, 2**25]))  # a batch of n gives n * n * n times as much
    rows = np.ones((2, FEATURES), np.float32)
    check_file(path)
    assert "needs more than 2048 MiB" in refusal(lambda: check_file(path, rows))
    assert "needs more than 300 MiB" in refusal(lambda: check_file(path, memory_mib=300))


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


def beside(path: Path, location: str, **entries: int) -> None:
    """Move weight1 of the model to another file."""
    model = make_model(make_weights())
    tensor = external(model.graph.initializer[1], location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())


def test_weights_in_the_models_folder_may_be_allowed(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "any.onnx"
    (folder / "weights.data").write_bytes(b"\1" * 8 + make_weights()[1].tobytes())
    beside(path, "weights.data", offset=8, length=4 * 16 * CLASSES)
    check_file(path, alone=False)
    rows = np.ones((2, FEATURES), np.float32)
    np.testing.assert_allclose(infer(open_session(path, 1), path, rows), forward(make_weights(), rows), rtol=1e-5)


@pytest.mark.parametrize(
    ("location", "entries", "told"),
    [
        ("../secret", {}, "lies outside the model's folder (../secret)"),
        ("/etc/hostname", {}, "lies outside the model's folder (/etc/hostname)"),
        ("link", {}, "lies outside the model's folder (link)"),
        ("", {}, "lies outside the model's folder (no place named)"),
        ("missing", {}, "lies in missing, which is no file of the model's folder"),
        ("short", {}, "claims [16, 3] of float, which short does not hold"),
        ("whole", {"offset": 8}, "claims [16, 3] of float, which whole does not hold"),
        ("whole", {"offset": -8}, "claims [16, 3] of float, which whole does not hold"),
    ],
)
def test_weights_outside_the_folder_or_cut_short_are_never_allowed(
    tmp_path: Path, location: str, entries: dict[str, int], told: str
):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 16 * CLASSES))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "whole").write_bytes(bytes(4 * 16 * CLASSES))
    (folder / "short").write_bytes(bytes(8))
    beside(folder / "model.onnx", location, **entries)
    message = refusal(lambda: check_file(folder / "model.onnx", alone=False))
    assert f"weight 'weight1' {told}" in message


def test_models_of_other_names_and_a_fixed_batch_answer_row_by_row(save: Save):
    model = make_model(make_weights(), name="pixels", batch=4)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    path = save(model)
    check_file(path)
    session = open_session(path, 1)
    assert read_signature(session, path) == Signature("pixels", (4, FEATURES), "scores", (4, CLASSES))
    assert read_signature(session, path).batch == 4
    rows = np.random.default_rng(0).normal(size=(10, FEATURES)).astype(np.float32)
    np.testing.assert_allclose(infer(session, path, rows), forward(make_weights(), rows), rtol=1e-4, atol=1e-4)


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", CLASSES]))
    model.graph.node[-1].output[0] = "all"
    model.graph.node.append(helper.make_node("Mul", ["all", "mask"], ["logits"]))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (changed(two_inputs), "takes 2 inputs (input, mask); one float32 input can be measured"),
        (make_model(make_weights(), kind=TensorProto.DOUBLE), "input 'input' is tensor(double); float32 can be"),
        (make_model(make_weights(), kind=TensorProto.STRING), "input 'input' is tensor(string); float32 can be"),
        (
            changed(
                lambda m: (
                    setattr(m.graph.node[-1], "op_type", "ArgMax"),
                    m.graph.node[-1].input.pop(),
                    m.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.INT64, None)),
                )
            ),
            "output 'logits' is tensor(int64); float32 can be measured",
        ),
    ],
)
def test_inputs_and_outputs_of_other_types_are_told(save: Save, model: onnx.ModelProto, told: str):
    path = save(model)
    check_file(path)
    session = open_session(path, 1)
    assert refusal(lambda: read_signature(session, path)).startswith(f"{path}: {told}")


def test_a_provider_that_is_not_installed_is_told(save: Save):
    path = save(make_model(make_weights()))
    message = refusal(lambda: open_session(path, 1, "cuda"))
    assert message.startswith("hardware.provider is cuda, but this ONNX Runtime has ")


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
