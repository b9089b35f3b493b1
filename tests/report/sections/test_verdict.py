from mlites.report.html import render
from tests.report.page import Page


def test_verdict_comes_first_with_what_was_gained(run):
    page = Page(render(*run()))
    start = page.text[: page.text.index("Accuracy, speed and size")]
    assert "Deployed" in start and "student-int8 now answers as digits , version 3" in start
    assert "99.2% 98.06% against 98.89%" in start  # 0.9806 / 0.9889
    assert "7.21×" in start and "faster" in start  # noqa: RUF001
    assert "97%" in start and "smaller" in start
    assert "meets every line of the budget" in start


def test_a_slower_and_larger_candidate_is_called_that(run):
    summary, details = run()
    worse = summary.selected_candidate.model_copy(update={"speedup": 0.5, "size_ratio": 0.5, "accuracy": 0.2})
    others = [one for one in summary.candidates if one.name != worse.name]
    page = Page(render(summary.model_copy(update={"candidates": [worse, *others]}), details))
    start = page.text[: page.text.index("Accuracy, speed and size")]
    assert "slower 2.00×" in start and "larger 100%" in start  # noqa: RUF001
