import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

import mlites.report.summary as module
from mlites.recipe import Recipe
from mlites.report.summary import Summary, summarize, summary_schema

SCHEMA = Path(module.__file__).with_name("summary.schema.json")
RECIPE = {
    "name": "digits",
    "seed": 7,
    "data": {"source": "digits"},
    "teacher": {"architecture": {"family": "mlp", "hidden": [64]}},
    "candidates": [
        {"name": "small", "passes": [{"pass": "distill", "student": {"family": "mlp", "hidden": [32, 16]}}]},
        {"name": "tiny", "passes": [{"pass": "distill", "student": {"family": "resnet", "depth": 8, "width": 4}}]},
        {"name": "pruned", "passes": [{"pass": "prune", "amount": 0.25}, {"pass": "quantize", "per_channel": False}]},
    ],
}


def document(summary: Summary):
    return json.loads(json.dumps(summary.model_dump(mode="json"), allow_nan=False))


def test_checked_in_schema_is_the_models():
    wrong = "run: python -m mlites.report.summary > mlites/report/summary.schema.json"
    assert json.loads(SCHEMA.read_text()) == summary_schema(), wrong


@pytest.mark.parametrize("status", ["deployed", "rejected"])
def test_finished_runs_satisfy_the_schema(run, status):
    summary, _ = run(status)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document(summary))
    assert summary.status == status


def test_failed_runs_satisfy_the_schema(failed_run):
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document(failed_run[0]))


def test_schema_refuses_another_status(run):
    wrong = document(run()[0]) | {"status": "maybe"}
    with pytest.raises(jsonschema.ValidationError, match="maybe"):
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(wrong)


def test_summary_has_every_field_that_readers_rely_on(run):
    written = document(run()[0])
    assert {"run", "recipe", "status", "seed", "environment", "data", "baseline", "candidates"} <= set(written)
    assert {"selected", "deployment", "steps", "overhead_seconds"} <= set(written)
    assert {"cpu", "isa", "threads", "packages"} <= set(written["environment"])
    assert {"digest", "rows", "classes"} <= set(written["data"])
    shared = {"name", "accuracy", "latency_ms", "size_bytes", "peak_memory_bytes"}
    assert shared <= set(written["baseline"]) and set(written["baseline"]["latency_ms"]) == {"p50", "p95", "p99"}
    more = {"passes", "accuracy_drop_points", "speedup", "size_ratio", "on_front", "within_budget", "reasons"}
    assert all(shared | more <= set(one) for one in written["candidates"])
    assert {"model", "version", "repository", "sha256", "triton_url"} <= set(written["deployment"])
    assert all(set(step) == {"name", "seconds", "cached"} for step in written["steps"])


def test_candidates_keep_the_recipes_order_and_the_measured_numbers(run):
    summary, _ = run()
    names = [one.name for one in summary.candidates]
    assert names[:3] == ["int8", "int8-dynamic", "pruned"] and len(names) == 8
    best = summary.selected_candidate
    assert best is not None and best.name == "student-int8"
    assert best.speedup == pytest.approx(0.1312 / 0.0182) and best.size_bytes == 31_377
    assert best.within_budget and best.on_front


def test_a_candidate_that_could_not_be_judged_keeps_its_error_and_the_first_of_the_list_may_be_one(run):
    summary, _ = run(broken=2)
    assert summary.candidates[0].name == "int8", "the recipe's come first"
    (first, _) = [one for one in summary.candidates if one.failed]
    assert (first.failed.step, first.accuracy, first.on_front) == ("validate", None, False)
    assert summary.environment is not None and summary.baseline is not None
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document(summary))


def test_lines_energy_and_the_rest_are_those_of_the_documents(run):
    summary, _ = run("rejected")
    best = summary.selected_candidate
    assert {line.line: line.verdict for line in best.lines}["latency p95"] == "undecided"
    assert best.energy.kind == "estimated" and best.roofline.bound == "overhead" and len(best.operators) == 3
    assert best.marks == summary.environment.warnings and summary.environment.profile == "server-1core"
    assert summary.front.hypervolume == 0.0912 and summary.nearest[0].line == "speedup"


def test_a_failed_run_keeps_what_was_measured_and_lists_the_rest(failed_run):
    summary, _ = failed_run
    assert summary.status == "failed" and summary.failed_step == "validate-pruned-int8"
    measured = [one.name for one in summary.candidates if one.accuracy is not None]
    assert measured == ["int8", "int8-dynamic", "pruned"] and len(summary.candidates) == 8
    assert summary.candidates[-1].passes and summary.candidates[-1].speedup is None
    assert summary.baseline is not None and summary.selected_candidate is None


def test_a_run_that_failed_at_once_still_has_a_summary():
    recipe = Recipe.model_validate(RECIPE)
    summary = summarize("r1", recipe, None, None, None, [], "Oops:\n  nothing works", "prepare-data")
    assert summary.error == "Oops: nothing works"
    assert (summary.seed, summary.baseline, summary.environment, summary.data) == (7, None, None, None)
    assert [one.name for one in summary.candidates] == ["small", "tiny", "pruned"]
    assert summary.candidates[2].passes == [step.label for step in recipe.candidates[2].passes]


def test_no_deployment_needs_a_reason():
    with pytest.raises(ValueError, match="run r1 has no deployment document: give the error that stopped it"):
        summarize("r1", Recipe.model_validate(RECIPE), None, None, None, [])


def test_a_newer_summary_can_be_read_and_a_nan_cannot(run):
    written = document(run()[0])
    assert Summary.model_validate(written | {"energy_joules": 3.0}) == run()[0]
    with pytest.raises(ValidationError, match="finite"):
        Summary.model_validate(written | {"overhead_seconds": float("nan")})


def test_a_summary_written_before_cost_was_counted_can_be_read(run):
    written = document(run()[0])
    added = ("download_bytes", "parameters", "macs", "speedup_over_source", "speedup_over_source_interval", "warnings")
    for one in (written["baseline"], *written["candidates"]):
        for key in added:
            one.pop(key, None)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(written)
    old = Summary.model_validate(written)
    assert old.candidates[0].warnings == [] and old.candidates[0].macs is old.baseline.macs is None


def test_cost_speed_over_the_source_and_warnings_are_those_of_the_verdict(run):
    by_name = {one.name: one for one in run()[0].candidates}
    slow = by_name["int8-dynamic"]
    assert (slow.macs, slow.parameters, slow.speedup_over_source) == (1_021_568, 77_850, 0.51)
    assert slow.speedup_over_source_interval == pytest.approx((0.4998, 0.5202))
    assert slow.warnings == ["quantization made it slower: 0.51x its FP32 form (95% interval 0.50 to 0.52)"]
    assert by_name["sparse"].download_bytes == 1_090_214 // 14 and by_name["sparse"].speedup_over_source is None


def test_the_module_prints_its_schema(capsys):
    import runpy
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is already imported, on purpose
        runpy.run_module("mlites.report.summary", run_name="__main__")
    assert json.loads(capsys.readouterr().out) == summary_schema()
