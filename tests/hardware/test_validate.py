import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.failure import Failure
from mlites.files import canonical_json
from mlites.hardware.budget import decided_by
from mlites.hardware.failed import failed_verdict
from mlites.hardware.latency import measure_latency
from mlites.hardware.selection import select
from mlites.hardware.validate import headline_figures, share_time, validate
from mlites.models.card import read_card
from mlites.packing.pack import pack, unpack
from mlites.recipe import Budget, Hardware, Recipe
from mlites.report.details import Details
from mlites.report.html import render
from mlites.report.markdown import markdown
from mlites.report.summary import summarize
from mlites.serving.deploy import declined
from tests.hardware.networks import forward, make_model, make_weights

ModelFolder = Callable[..., Path]
QUICK = Hardware(seconds=0.05, longest_seconds=0.1, precision=0.5)


def onnx_bytes(seed: int = 0, **changes: object) -> bytes:
    return make_model(make_weights(seed=seed), **changes).SerializeToString()


def test_a_verdict_holds_what_was_measured_of_candidate_and_teacher(dataset: Dataset, model_folder: ModelFolder):
    baseline, candidate = model_folder("teacher", onnx_bytes()), model_folder("student", onnx_bytes(seed=5))
    profile = QUICK.model_copy(update={"name": "phone", "batches": (4,), "emulated": "a slower core"})
    verdict = validate(candidate, baseline, dataset, profile, "student", ["distill mlp 16"])
    inputs, labels = dataset.arrays("test")
    teacher, own = (forward(make_weights(seed=seed), inputs).argmax(axis=1) for seed in (0, 5))
    assert verdict["format"] == "mlites-verdict/2"
    assert (verdict["candidate"], verdict["passes"]) == ("student", ["distill mlp 16"])
    assert verdict["model"] == read_card(candidate).digest
    assert verdict["parents"] == ["0" * 64] and verdict["provenance"][0]["step"] == "train"
    assert verdict["accuracy"] == pytest.approx((own == labels).mean())
    assert verdict["baseline"]["accuracy"] == pytest.approx((teacher == labels).mean()) == 0.9
    assert verdict["accuracy_drop_points"] == pytest.approx(100 * (0.9 - verdict["accuracy"]))
    assert verdict["agreement"] == pytest.approx((own == teacher).mean())
    assert np.array(verdict["confusion"]).sum() == len(labels)
    assert verdict["classes"] == ["a", "b", "c"]
    low, high = verdict["accuracy_drop_interval"]
    assert low <= verdict["accuracy_drop_points"] <= high
    for index, one in enumerate(verdict["class_drops"]):
        recalls = [figures["per_class"][index] for figures in (verdict["baseline"], verdict)]
        assert one["points"] == pytest.approx(100 * (recalls[0] - recalls[1]))
        assert one["rows"] == (labels == index).sum()
    for figures in (verdict["baseline"], verdict):
        gaps = sum(one["rows"] * abs(one["confidence"] - one["accuracy"]) for one in figures["calibration"])
        assert figures["ece"] == pytest.approx(gaps / len(labels))
    assert verdict["size_bytes"] == (candidate / "model.onnx").stat().st_size
    assert verdict["size_ratio"] == (baseline / "model.onnx").stat().st_size / verdict["size_bytes"]
    assert verdict["speedup"] == pytest.approx(1, abs=0.2)
    assert verdict["speedup_interval"][0] <= verdict["speedup"] <= verdict["speedup_interval"][1]
    for figures in (verdict, verdict["baseline"]):
        assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p95"] <= figures["latency_ms"]["p99"]
        assert 20 << 20 < figures["peak_memory_bytes"] < 1 << 30
    assert verdict["machine"]["threads"] == verdict["machine"]["batch"] == 1
    assert verdict["rounds"] >= 10
    machine = verdict["machine"]
    assert (machine["profile"], machine["provider"]) == ("phone", "cpu")
    assert any("a slower core" in line for line in machine["warnings"])
    assert set(machine["load"]) == {"others_share", "steal_share"}
    assert machine["peaks"]["int8_gmacs_per_second"] > 0 < machine["peaks"]["stream_gbytes_per_second"]
    for figures in (verdict, verdict["baseline"]):
        for name, (low, high) in figures["latency_interval_ms"].items():
            assert low <= figures["latency_ms"][name] <= high
        assert [(one["batch"], one["streams"]) for one in figures["throughput"]] == [(1, 1), (4, 1)]
        assert all(one["interval"][0] <= one["rows_per_second"] <= one["interval"][1] for one in figures["throughput"])
        assert figures["cold_start_ms"]["load"] > 0 < figures["cold_start_ms"]["first"]
        low, high = figures["energy"]["interval"]
        assert 0 < low <= figures["energy"]["millijoules"] <= high and figures["energy"]["source"]
        roof = figures["roofline"]
        assert roof["macs"] == figures["macs"] and roof["bound"] == "overhead"
        assert roof["fraction_of_limit"] == pytest.approx(roof["limit_ms"] / figures["latency_ms"]["p50"])
        assert {one["op_type"] for one in figures["operators"]} & {"MatMul", "Gemm"}
    assert verdict["speedup_narrow"] in (True, False) and verdict["measured_seconds"] >= 0.1
    canonical_json(verdict)
    assert select([verdict], Budget())["selected"] == "student"


def test_the_teacher_against_itself_loses_nothing(dataset: Dataset, model_folder: ModelFolder):
    folder = model_folder("teacher", onnx_bytes())
    verdict = validate(folder, folder, dataset, Hardware(seconds=0.05, batch=500), "same", [])
    assert verdict["accuracy_drop_points"] == 0 and verdict["agreement"] == 1 and verdict["size_ratio"] == 1
    assert verdict["machine"]["batch"] == 500


def test_macs_are_the_files_and_parameters_the_last_steps_that_counted_them(
    dataset: Dataset, model_folder: ModelFolder
):
    small = make_model(make_weights((8,))).SerializeToString()
    steps = ({"step": "train", "metrics": {"parameters": 153}}, {"step": "prune", "metrics": {"parameters": 77}})
    baseline = model_folder("teacher", onnx_bytes(), provenance=steps[:1])
    others = {"step": "export", "metrics": {}}, {"step": "mine", "metrics": "none"}, {"step": "yours"}
    candidate = model_folder("student", small, provenance=(*steps, *others))
    verdict = validate(candidate, baseline, dataset, QUICK, "student", [])
    assert (verdict["macs"], verdict["baseline"]["macs"]) == (6 * 8 + 8 * 3, 6 * 16 + 16 * 3)
    assert (verdict["parameters"], verdict["baseline"]["parameters"]) == (77, 153)


def test_the_download_is_the_packed_file_which_unpacks_to_the_same_bytes(dataset: Dataset, model_folder: ModelFolder):
    few = [np.sign(weight) for weight in make_weights((64,), seed=3)]  # two values, a bit each
    folders = model_folder("teacher", onnx_bytes()), model_folder("student", make_model(few).SerializeToString())
    verdict = validate(folders[1], folders[0], dataset, QUICK, "student", [])
    for figures, folder in zip((verdict["baseline"], verdict), folders, strict=True):
        content = (folder / "model.onnx").read_bytes()
        packed = pack(content)
        assert figures["download_bytes"] == len(packed) < figures["size_bytes"] == len(content)
        assert unpack(packed) == content
    assert verdict["download_bytes"] < 0.4 * verdict["size_bytes"]


def test_a_candidate_slower_than_its_source_says_so(dataset: Dataset, model_folder: ModelFolder):
    teacher, source = model_folder("teacher", onnx_bytes(seed=1)), model_folder("fp32", onnx_bytes())
    wide = make_model(make_weights((4096, 64))).SerializeToString()
    candidate = model_folder("int8", wide)
    verdict = validate(candidate, teacher, dataset, QUICK, "int8", ["quantize static"], source)
    low, high = verdict["speedup_over_source_interval"]
    assert low <= verdict["speedup_over_source"] <= high < 1
    assert verdict["speedup_over_source"] == pytest.approx(verdict["speedup"], rel=0.25)
    assert verdict["warnings"][0] == (
        f"quantization made it slower: {verdict['speedup_over_source']:.2f}x its FP32 form "
        f"(95% interval {low:.2f} to {high:.2f})"
    )
    canonical_json(verdict)


def test_a_source_that_is_measured_anyway_is_not_measured_twice(dataset: Dataset, model_folder: ModelFolder):
    teacher, candidate = model_folder("teacher", onnx_bytes()), model_folder("student", onnx_bytes(seed=5))
    quantized = validate(candidate, teacher, dataset, QUICK, "one", [], teacher)
    assert quantized["speedup_over_source"] == quantized["speedup"]
    assert quantized["speedup_over_source_interval"] == quantized["speedup_interval"]
    not_quantized = validate(candidate, teacher, dataset, QUICK, "one", [], candidate)
    assert not_quantized["speedup_over_source"] is not_quantized["speedup_over_source_interval"] is None


@pytest.mark.parametrize("seconds", [0.1, 2.0, 600.0])
def test_a_third_model_lengthens_the_measurement_by_a_third(seconds: float):
    assert share_time(2, seconds) == seconds
    assert 3 * share_time(3, seconds) == pytest.approx(4 / 3 * 2 * share_time(2, seconds))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"form": "torch"}, "form is torch; validation needs an exported model.onnx"),
        ({"preprocessing": {"scale": 1.0, "mean": [0.0] * 6, "std": [1.0] * 6}}, "preprocessing differs"),
    ],
)
def test_a_source_that_does_not_fit_is_named(
    dataset: Dataset, model_folder: ModelFolder, changes: dict[str, object], told: str
):
    teacher, source = model_folder("teacher", onnx_bytes()), model_folder("fp32", onnx_bytes(seed=2), **changes)
    with pytest.raises(InputError, match=told) as caught:
        validate(teacher, teacher, dataset, QUICK, "one", [], source)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "changes", "told"),
    [
        (onnx_bytes()[:-9], {}, "not an ONNX file, or cut short"),
        (onnx_bytes(name="x"), {}, "inputs are x; the data needs"),
        (onnx_bytes(batch=1), {}, "input has shape [1, 6]; the data needs"),
        (onnx_bytes(), {"classes": ("a", "c", "b")}, "classes are a, c, b; the data has a, b, c, in this order"),
        (onnx_bytes(), {"form": "torch"}, "form is torch; validation needs an exported model.onnx"),
    ],
)
def test_a_candidate_that_cannot_be_measured_gives_one_line_that_names_its_file(
    dataset: Dataset, model_folder: ModelFolder, content: bytes, changes: dict[str, object], told: str
):
    baseline = model_folder("teacher", onnx_bytes())
    candidate = model_folder("broken", content, **changes)
    with pytest.raises(InputError) as caught:
        validate(candidate, baseline, dataset, QUICK, "broken", [])
    message = str(caught.value)
    assert told in message and str(candidate) in message and "\n" not in message


def test_more_threads_than_cores_are_marked(dataset: Dataset, model_folder: ModelFolder):
    folder = model_folder("teacher", onnx_bytes())
    cores = len(os.sched_getaffinity(0))
    verdict = validate(folder, folder, dataset, QUICK.model_copy(update={"threads": cores + 1}), "same", [])
    told = f"runs {cores + 1} threads on the {cores} cores that this process may use"
    assert any(told in line for line in verdict["machine"]["warnings"])


def test_a_line_whose_limit_lies_in_the_interval_is_measured_to_the_end_and_not_deployed(
    dataset: Dataset, model_folder: ModelFolder
):
    folder = model_folder("teacher", onnx_bytes())
    profile = Hardware(seconds=0.05, longest_seconds=1, precision=0.5)
    equal = Budget(speedup=1)  # of a file against itself: no measurement can tell
    verdict = validate(folder, folder, dataset, profile, "same", [], budget=equal)
    assert verdict["measured_seconds"] >= 2, "one second for each of both"
    assert verdict["speedup_interval"][0] < 1 < verdict["speedup_interval"][1]
    selection = select([verdict], equal)
    assert selection["candidates"][0]["lines"][1]["verdict"] == "undecided"
    assert selection["within_budget"] is False
    assert select([verdict], Budget(speedup=1, undecided="deploy"))["within_budget"] is True


def test_measuring_ends_early_where_the_limit_is_far_and_goes_on_where_it_is_near(save: Callable[..., Path]):
    path, profile = save(make_model(make_weights())), Hardware(seconds=0.05, longest_seconds=4, precision=0.5)
    rows = np.zeros((1, 6), np.float32)
    far, near = (
        measure_latency([path, path], rows, profile, decided=decided_by(Budget(speedup=limit)))[1]
        for limit in (0.2, 1.0)
    )
    assert len(far.sittings) < len(near.sittings)


def test_a_report_can_be_drawn_from_what_was_really_measured(dataset: Dataset, model_folder: ModelFolder):
    baseline, candidate = model_folder("teacher", onnx_bytes()), model_folder("student", onnx_bytes(seed=5))
    limits = {"accuracy_drop_points": 5, "class_drop_points": 5, "p95_ms": 1000, "speedup": 0.01, "energy_mj": 1e9}
    recipe = Recipe.model_validate(
        {
            "name": "table",
            "data": {"source": "csv", "path": "rows.csv"},
            "teacher": {"architecture": {"family": "mlp", "hidden": [16]}},
            "candidates": [
                {"name": name, "passes": [{"pass": "quantize", "method": name}]} for name in ("static", "fp16")
            ],
            "budget": limits,
        }
    )
    profile = QUICK.model_copy(update={"streams": (2,)})
    verdict = validate(candidate, baseline, dataset, profile, "static", ["quantize static"], baseline, recipe.budget)
    failed = failed_verdict(
        "fp16", ["quantize fp16"], Failure("quantize fp16", "no layer can be stored in half precision")
    )
    documents = [failed, verdict]
    selection = select(documents, recipe.budget)
    data = {"digest": dataset.digest, "rows": dataset.rows, "classes": list(dataset.classes)}
    summary = summarize("r1", recipe, selection, declined(selection, "table"), data, documents)
    content = render(summary, Details.model_validate({"verdicts": documents}))
    assert summary.status == "rejected" and summary.selected == "static"
    drop = next(line for line in summary.selected_candidate.lines if line.line == "accuracy drop")
    assert drop.verdict == "fail" and drop.value == pytest.approx(verdict["accuracy_drop_points"])
    for words in (
        "no layer can be stored in half precision",
        "accuracy drop",
        "batch 1, 2 streams",
        verdict["machine"]["cpu"],
    ):
        assert words in content
    for key, value in headline_figures(verdict).items():
        assert value > 0 or key == "accuracy_drop_points", key
    assert "accuracy drop" in markdown(summary)
