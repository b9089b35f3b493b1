from mlites.report.html import render
from mlites.report.sections.candidates import rank_rows
from mlites.report.sections.tradeoffs import draw_tradeoffs
from tests.report.page import Page


def words(summary, width):
    (plot,) = [one["plot"] for one in draw_tradeoffs(summary, rank_rows(summary)) if one["width"] == width]
    return Page(str(plot)).text


def test_all_that_is_known_is_an_axis_and_a_narrow_page_has_five(run):
    summary, _ = run()
    for name in ("accuracy", "speed", "size", "memory", "energy", "cold start", "throughput"):
        assert name in words(summary, "wide")
    assert "cold start" not in words(summary, "narrow") and "energy" in words(summary, "narrow")
    assert "1.13×" in words(summary, "wide"), "84.5 MiB over 75 MiB"  # noqa: RUF001


def test_what_no_candidate_has_is_no_axis(run):
    summary, _ = run()
    bare = [
        one.model_copy(update={"energy": None, "throughput": [], "cold_start_ms": None}) for one in summary.candidates
    ]
    text = words(summary.model_copy(update={"candidates": bare}), "wide")
    assert "memory" in text and not any(name in text for name in ("energy", "cold start", "throughput"))


def test_of_very_many_candidates_the_front_alone_is_drawn(run, many):
    summary, _ = run(candidates=many(60))
    (plot,) = [one["plot"] for one in draw_tradeoffs(summary, rank_rows(summary)) if one["width"] == "wide"]
    drawn = str(plot).count("<g>")
    assert drawn == 1 + sum(bool(one.on_front) or one.name == summary.selected for one in summary.candidates) < 60


def test_the_hypervolume_and_its_reference_are_told(run):
    text = Page(render(*run())).text
    assert "cover 9.1% of what lies between twice the teacher's time, size, memory and energy, at" in text
