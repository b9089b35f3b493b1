from mlites.report.html import render
from mlites.report.markdown import markdown
from mlites.report.sections.budget import compare_lines, judged_lines
from mlites.report.sections.candidates import rank_rows
from mlites.report.summary import BudgetLine
from tests.report.page import Page


def test_a_line_tells_value_limit_margin_interval_and_verdict():
    (one,) = judged_lines(
        [
            BudgetLine(
                line="latency p95",
                value=0.74,
                limit=0.75,
                unit="ms",
                margin=0.01,
                interval=(0.7, 0.78),
                verdict="undecided",
            )
        ]
    )
    assert (one.value, one.limit, one.margin, one.interval) == ("0.74 ms", "≤ 0.75 ms", "0.01 ms", "0.7 ms to 0.78 ms")
    assert one.chip == ("caution", "? undecided")


def test_a_lower_limit_and_a_negative_margin_are_told():
    (one,) = judged_lines(
        [BudgetLine(line="speedup", value=7.2, limit=40, unit="x", bound="at least", margin=-32.8, verdict="fail")]
    )
    assert (one.value, one.limit, one.margin, one.interval) == ("7.2×", "≥ 40×", "−32.8×", "–")  # noqa: RUF001


def test_a_line_that_was_not_measured_is_a_dash():
    (one,) = judged_lines([BudgetLine(line="energy", limit=4, unit="mJ", verdict="undecided")])
    assert (one.value, one.margin, one.interval, str(one.picture)) == ("–", "–", "–", "")  # noqa: RUF001


def test_every_judged_candidate_stands_in_the_matrix_with_every_line(run):
    summary, _ = run("rejected", broken=1)
    matrix = compare_lines(rank_rows(summary))
    assert matrix.lines == [line.line for line in summary.selected_candidate.lines]
    assert {row.candidate.name for row, _ in matrix.rows} == {one.name for one in summary.candidates if not one.failed}
    for row, cells in matrix.rows:
        assert [verdict for verdict, *_ in cells] == [line.verdict for line in row.candidate.lines]


def test_the_page_tells_every_line_of_the_selected_candidate_and_what_it_would_take(run):
    page = Page(render(*run("rejected")))
    start = page.text.index("Budget, line by line")
    text = page.text[start : page.text.index("Latency, throughput, cold start, energy")]
    for words in ("latency p95", "? undecided", "✕ fail", "≥ 40×", "6.956× to 7.497×"):  # noqa: RUF001
        assert words in text, words
    assert "What it would take It needs 450% more speedup at this accuracy" in text
    assert "nothing is deployed on it" in text


def test_an_undecided_candidate_is_not_called_over(run):
    page = Page(render(*run()))
    assert "? undecided" in page.text[page.text.index("Candidates 8 candidates") :]


def test_markdown_has_the_lines_and_the_failed_candidates_and_escapes_what_would_be_marks(run):
    summary, _ = run("rejected", broken=1)
    written = markdown(summary)
    assert (
        "| latency p95 | 0.02148 ms | ≤ 0.023 ms | 0.00152 ms | 0.02084 ms to 0.02406 ms | undecided |"
        in written.replace("\\", "")
    )
    assert "| broken-0 | failed | failed at validate: model.onnx: not an ONNX file" in written
    assert written.startswith("# Rejected: student-int8\n")
    hostile = summary.model_copy(update={"reason": "<script>|*x*\n[y](z)&"})
    assert "\\<script\\>\\|\\*x\\*" in markdown(hostile) and "(z)&amp;" in markdown(hostile)


def test_markdown_of_a_run_that_knows_nothing(failed_run):
    summary, _ = failed_run
    assert markdown(summary).startswith("# Failed: nothing\n\n## Candidates")
