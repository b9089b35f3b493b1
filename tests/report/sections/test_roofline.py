from mlites.report.html import render
from mlites.report.sections.candidates import rank_rows
from mlites.report.sections.roofline import draw_rooflines, list_profiles, list_reaches
from tests.report.page import Page


def test_peaks_limits_and_what_binds_are_told(run):
    summary, details = run()
    text = Page(render(summary, details)).text
    assert "51.2 GMAC/s in FP32, 643 GMAC/s in INT8, 11.8 GB/s from memory" in text
    by_name = {one.name: one.cells for one in list_reaches(summary, rank_rows(summary))}
    assert by_name["teacher"][0] == "1.02 M" and by_name["teacher"][-1] == "overhead"
    assert len(by_name) == 9


def test_the_selected_candidates_operators_come_first_with_their_hints(run):
    summary, details = run()
    profiles = list_profiles(summary, rank_rows(summary))
    assert profiles[0].name == "student-int8" and len(profiles) == 9
    assert "QDQ not fused here" in Page(render(summary, details)).text


def test_without_peaks_or_with_figures_of_zero_there_is_no_plot_but_the_table(run):
    summary, _ = run()
    rows = rank_rows(summary)
    assert len(draw_rooflines(summary, rows)) == 3
    environment = summary.environment.model_copy(update={"peaks": None})
    assert draw_rooflines(summary.model_copy(update={"environment": environment}), rows) == []
    zero = [
        one.model_copy(update={"roofline": one.roofline.model_copy(update={"fraction_of_limit": 0.0, "macs": None})})
        for one in summary.candidates
    ]
    base = summary.baseline.model_copy(update={"roofline": None})
    changed = summary.model_copy(update={"candidates": zero, "baseline": base})
    assert draw_rooflines(changed, rank_rows(changed)) == []
    assert {one.cells[0] for one in list_reaches(changed, rank_rows(changed))} == {"–"}  # noqa: RUF001
