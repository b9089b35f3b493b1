from mlites.report.html import render
from mlites.report.sections.candidates import rank_rows
from mlites.report.sections.cost import draw_costs
from tests.report.page import Page


def test_the_plot_is_told_in_words_with_both_ratios(run):
    summary, details = run()
    picture = next(one["aria-label"] for one in Page(render(summary, details)).all("svg") if "accumulates" in str(one))
    assert "pruned: 2.04× as fast with 0.300× the multiply-accumulates" in picture  # noqa: RUF001


def test_where_no_candidate_computes_less_there_is_nothing_to_plot(run):
    summary, _ = run()
    same = [one.model_copy(update={"macs": summary.baseline.macs}) for one in summary.candidates]
    unknown = [one.model_copy(update={"macs": None}) for one in summary.candidates]
    for candidates in (same, unknown):
        changed = summary.model_copy(update={"candidates": candidates})
        assert draw_costs(changed, rank_rows(changed)) == []


def test_a_run_measured_before_macs_were_counted_has_its_page_without_the_plot(run):
    summary, details = run()
    old = summary.model_copy(
        update={
            "baseline": summary.baseline.model_copy(update={"macs": None, "download_bytes": None}),
            "candidates": [
                one.model_copy(update=dict.fromkeys(("macs", "download_bytes", "speedup_over_source")))
                for one in summary.candidates
            ],
        }
    )
    page = Page(render(old, details))
    assert "Arithmetic" not in page.text and "download" not in page.text and "own FP32 form" not in page.text
