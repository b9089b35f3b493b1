import json

from mlites.recipe import Recipe
from mlites.report.publish import failed_run, finish_run
from mlites.report.summary import Step
from tests.report.page import Page

RECIPE = Recipe.model_validate(
    {
        "name": "digits",
        "data": {"source": "digits"},
        "teacher": {"architecture": {"family": "mlp", "hidden": [64]}},
        "candidates": [{"name": "int8", "passes": [{"pass": "quantize"}]}],
    }
)
STEP = Step(name="train-teacher", seconds=1.5, cached=False)


def test_a_failed_run_writes_what_its_earlier_steps_found(tmp_path, verdict, data_document):
    summary = failed_run(
        tmp_path, "r1", RECIPE, "out of memory", "select", [STEP], 0.5, data_document, [verdict("int8")]
    )
    assert summary.data is not None and summary.baseline is not None
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["status"] == "failed" and written["candidates"][0]["macs"] == 1_021_568
    page = Page((tmp_path / "report.html").read_text())
    assert "The run stopped at the step select" in page.text and "out of memory" in page.text
    for heading in ("Accuracy, speed and size", "What each pass did", "Mistakes", "1293 train"):
        assert heading in page.text


def test_a_run_that_failed_at_once_writes_a_page_all_the_same(tmp_path):
    summary = failed_run(tmp_path, "r1", RECIPE, "no such file", "prepare-data", [], 0.1)
    assert (summary.data, summary.baseline) == (None, None)
    assert "Nothing about the data is known" in Page((tmp_path / "report.html").read_text()).text


def test_the_page_drawn_again_from_its_files_is_the_same_but_for_what_the_runner_adds(tmp_path, verdict, data_document):
    failed_run(tmp_path, "r1", RECIPE, "out of memory", "select", [STEP], 0.5, data_document, [verdict("int8")])
    first = (tmp_path / "report.html").read_bytes()
    finish_run(tmp_path, [STEP], 0.5, None)
    assert (tmp_path / "report.html").read_bytes() == first
    finish_run(tmp_path, [STEP], 0.5, "e78e25c")
    assert b"e78e25c" in (tmp_path / "report.html").read_bytes()
