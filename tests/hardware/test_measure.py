import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.hardware.measure import Sample, measure, read_sample
from mlites.recipe import Hardware
from tests.hardware.networks import CLASSES, FEATURES, forward, make_model, make_weights

Save = Callable[..., Path]
QUICK = Hardware(seconds=0.05, longest_seconds=0.1)
ROWS = np.random.default_rng(0).normal(size=(40, FEATURES)).astype(np.float32)


def foreign(seed: int = 0) -> onnx.ModelProto:
    """Other names than ours, and softmax at the end."""
    model = make_model(make_weights(seed=seed), name="pixels")
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model.graph.output[0].name = "probabilities"
    return model


def test_figures_of_labelled_rows_are_those_of_numpy(save: Save):
    paths = [save(make_model(make_weights()), "ours.onnx"), save(foreign(5), "theirs.onnx")]
    labels = np.arange(40) % CLASSES
    found = measure(paths, Sample(ROWS, labels), QUICK)
    assert found["format"] == "mlites-measure/1" and found["baseline"] == str(paths[0]) and found["rows"] == 40
    logits = [forward(make_weights(seed=seed), ROWS) for seed in (0, 5)]
    for one, own in zip(found["models"], logits, strict=True):
        assert one["accuracy"] == pytest.approx((own.argmax(1) == labels).mean())
        assert one["agreement"] == pytest.approx((own.argmax(1) == logits[0].argmax(1)).mean())
        assert one["macs"] == 16 * (FEATURES + CLASSES)
        assert one["size_bytes"] == Path(one["file"]).stat().st_size
        assert one["latency_interval_ms"]["p95"][0] <= one["latency_ms"]["p95"] * 1.01
        assert one["roofline"]["macs"] == one["macs"] and one["energy"]["kind"] in ("measured", "estimated")
        assert {operator["op_type"] for operator in one["operators"]} <= {"MatMul", "Relu", "Softmax", "FusedMatMul"}
        assert one["peak_memory_bytes"] > 20 << 20 and one["cold_start_ms"]["load"] > 0 and one["throughput"] == []
    # the confidence of a model with softmax inside is the probability that it states itself
    stated = np.exp(logits[1]) / np.exp(logits[1]).sum(axis=1, keepdims=True)
    bins = np.ceil(stated.max(1) * 15)
    right = logits[1].argmax(1) == labels
    gaps = [abs((stated.max(1) - right)[bins == one].sum()) for one in np.unique(bins)]
    assert found["models"][1]["ece"] == pytest.approx(sum(gaps) / 40, abs=1e-4)
    assert found["models"][0]["speedup"] == 1 and found["models"][1]["speedup"] > 0
    json.dumps(found, allow_nan=False)


def test_without_data_rows_are_random_and_no_accuracy_is_told(save: Save):
    found = measure([save(foreign())] * 2, None, QUICK)
    assert found["rows"] is None
    for one in found["models"]:
        assert one["accuracy"] is one["agreement"] is one["ece"] is one["per_class"] is None
        assert one["latency_ms"]["p50"] > 0


def test_an_answer_that_is_not_of_classes_is_timed_all_the_same(save: Save):
    model = make_model(make_weights())
    model.graph.node.append(helper.make_node("ReduceSum", ["logits"], ["sums"], keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("sums", TensorProto.FLOAT, []))
    model.graph.node[-1].output[0] = "sums"
    (found,) = measure([save(model)], Sample(ROWS), QUICK)["models"]
    assert found["accuracy"] is None and found["latency_ms"]["p50"] > 0


def test_weights_may_lie_beside_a_file_that_is_not_ours(tmp_path: Path):
    onnx.save(make_model(make_weights((64,))), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    (found,) = measure([tmp_path / "m.onnx"], Sample(ROWS), QUICK)["models"]
    beside = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found["size_bytes"] == beside and found["macs"] == 64 * (FEATURES + CLASSES)


def two_inputs() -> onnx.ModelProto:
    model = make_model(make_weights())
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return model


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no", "not an ONNX file, or cut short"),
        (two_inputs(), "takes 2 inputs (input, more); one float32 input can be measured"),
        (make_model(make_weights(), batch=3), "takes 3 rows at a time; measure it with a profile of batch 3, or"),
        (make_model(make_weights(), kind=TensorProto.INT64), "is tensor(int64); float32 can be measured"),
        (make_model([*make_weights()[:-1], np.ones((16, 2), np.float32)]), "answers with 2 classes; labels go up to 2"),
        (
            make_model([np.ones((9, 16), np.float32), *make_weights()[1:]]),
            "takes rows of shape [9]; those to measure with have [6]",
        ),
    ],
)
def test_a_file_that_cannot_be_measured_has_one_line_and_the_others_their_figures(
    save: Save, content: bytes | onnx.ModelProto, told: str
):
    paths = [save(content, "bad.onnx"), save(make_model(make_weights()), "good.onnx")]
    found = measure(paths, Sample(ROWS, np.arange(40) % CLASSES), QUICK)
    bad, good = found["models"]
    assert set(bad) == {"file", "error"} and told in bad["error"] and "\n" not in bad["error"]
    assert bad["error"].startswith(str(paths[0]))
    assert good["latency_ms"]["p50"] > 0 and found["baseline"] == str(paths[1])


def test_rows_of_a_shape_that_no_file_states_are_asked_for(save: Save):
    (found,) = measure([save(make_model(make_weights(), features="any"))], None, QUICK)["models"]
    assert found["error"].endswith("does not state the shape of a row, [?]; give rows with --data")


def test_a_fixed_batch_is_measured_with_a_profile_of_that_batch(save: Save):
    hardware = QUICK.model_copy(update={"batch": 3, "batches": (8,)})
    (found,) = measure([save(make_model(make_weights(), batch=3))], None, hardware)["models"]
    assert found["latency_ms"]["p50"] > 0 and found["throughput"] == []  # no other batch can be


def test_what_the_machine_lacks_of_the_profile_is_marked(save: Save):
    hardware = QUICK.model_copy(update={"name": "mine", "cores": 1000, "emulated": "many cores"})
    machine = measure([save(make_model(make_weights()))], None, hardware)["machine"]
    assert machine["profile"] == "mine" and machine["warnings"][0].startswith("profile mine has 1000 cores")
    assert "profile mine is emulated: many cores" in machine["warnings"]
    assert 0 <= machine["load"]["others_share"] <= 1


def test_a_provider_that_is_not_there_is_refused_rather_than_replaced(save: Save):
    with pytest.raises(InputError, match=r"hardware\.provider is cuda, but this ONNX Runtime has "):
        measure([save(make_model(make_weights()))], None, Hardware(provider="cuda"))


def test_rows_come_from_an_archive_as_they_are_and_from_a_dataset_normalised(dataset: Dataset, tmp_path: Path):
    found = read_sample(dataset.folder)
    inputs, labels = dataset.arrays("test")
    assert np.array_equal(found.inputs, inputs) and found.labels is not None and np.array_equal(found.labels, labels)
    np.savez(tmp_path / "rows.npz", x=ROWS.astype(np.float64), y=np.arange(40, dtype=np.uint8))
    found = read_sample(tmp_path / "rows.npz")
    assert np.array_equal(found.inputs, ROWS) and found.inputs.dtype == np.float32
    assert found.labels is not None and found.labels.dtype == np.int64 and found.labels[-1] == 39
    np.savez(tmp_path / "rows.npz", x=ROWS)
    assert read_sample(tmp_path / "rows.npz").labels is None


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"z": ROWS}, "expected an array x, and y if there are labels, found 'z'"),
        ({"x": np.ones(3)}, "x must be numbers of shape (rows, ...), got float64 of shape (3,)"),
        ({"x": ROWS, "y": np.ones(40)}, "y must be one class index a row, 0 or more, got float64 of shape (40,)"),
        ({"x": ROWS, "y": np.arange(39)}, "y must be one class index a row, 0 or more, got int64 of shape (39,)"),
        ({"x": ROWS * np.nan}, "x holds NaN or infinity"),
    ],
)
def test_an_archive_that_does_not_fit_is_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], told: str):
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(InputError) as caught:
        read_sample(tmp_path / "rows.npz")
    assert told in str(caught.value) and str(tmp_path / "rows.npz") in str(caught.value)


def test_data_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.npz: no such file; data is an npz archive with x \(and y\), or"):
        read_sample(tmp_path / "none.npz")


def test_the_command_prints_a_plain_table_and_json_and_ends_with_2_if_a_file_is_bad(save: Save, tmp_path: Path):
    (tmp_path / "quick.yaml").write_text("seconds: 0.05\nlongest_seconds: 0.1\n")
    good, bad = save(make_model(make_weights()), "good[red].onnx"), save(b"no", "bad.onnx")
    command = [sys.executable, "-m", "pipelines.cli", "measure", bad, good, "-p", tmp_path / "quick.yaml", "--json"]
    done = subprocess.run([*command, tmp_path / "out.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {bad}: not an ONNX file, or cut short; export the model again\n"
    head, row = done.stdout.splitlines()[1:3]
    assert head.split()[:3] == ["file", "p50", "ms"] and row.startswith(good.name) and " 1.000x " in row
    written = json.loads((tmp_path / "out.json").read_text())
    assert [one["file"] for one in written["models"]] == [str(bad), str(good)]
    done = subprocess.run([*command[:4], *command[5:], "-"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["models"][0]["file"] == str(good)
