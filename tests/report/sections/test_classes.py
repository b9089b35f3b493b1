import pytest

from mlites.report.html import render
from mlites.report.sections.classes import draw_calibration, draw_classes
from tests.report.page import Page


def test_every_class_stands_before_and_after_with_its_rows(run):
    summary, _ = run()
    found = draw_classes(summary, summary.data.classes)
    assert found["name"] == "student-int8" and found["more"] == 0
    for index, (one, drop) in enumerate(zip(found["rows"], summary.selected_candidate.class_drops, strict=True)):
        assert one.name == str(index)
        assert one.after == f"{100 * summary.selected_candidate.per_class[index]:.1f}%"
        assert (one.change == "±0 points") == (drop.points == 0)


def test_of_many_classes_the_greatest_losses_are_drawn_and_all_are_in_the_table(run):
    names = [f"class number {index}" for index in range(100)]
    summary, _ = run(classes=names)
    found = draw_classes(summary, names)
    assert found["more"] == 88 and len(found["rows"]) == 100
    worst = max(summary.selected_candidate.class_drops, key=lambda one: one.points)
    assert f"{worst.lost} lost and {worst.won} won" in str(found["plots"][0]["plot"])


def test_a_class_without_test_rows_is_a_dash(run):
    summary, details = run()
    chosen = summary.selected_candidate
    gone = chosen.model_copy(
        update={"class_drops": [None, *chosen.class_drops[1:]], "per_class": [None, *chosen.per_class[1:]]}
    )
    candidates = [gone if one.name == chosen.name else one for one in summary.candidates]
    changed = summary.model_copy(update={"candidates": candidates})
    first = draw_classes(changed, summary.data.classes)["rows"][0]
    assert (first.after, first.change, first.chance) == ("–", "–", "–")  # noqa: RUF001
    Page(render(changed, details))


@pytest.mark.parametrize("names", [[], ["a"]])
def test_classes_that_do_not_fit_are_not_drawn(run, names):
    assert draw_classes(run()[0], names) is None


def test_calibration_of_candidate_and_baseline_is_told_with_both_errors(run):
    summary, details = run()
    found = draw_calibration(summary, details)
    assert found["ece"] == f"{100 * summary.selected_candidate.ece:.2f}%"
    assert found["baseline_ece"] == f"{100 * summary.baseline.ece:.2f}%"
    without = details.model_copy(
        update={"verdicts": [one.model_copy(update={"calibration": []}) for one in details.verdicts]}
    )
    assert draw_calibration(summary, without) is None
