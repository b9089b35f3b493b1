from mlites.report.html import render
from mlites.report.sections.candidates import baseline_cells, budget_cells, rank_rows
from tests.report.page import Page


def cells(summary, name):
    (row,) = [row for row in rank_rows(summary) if row.candidate.name == name]
    return {cell.label: cell for cell in row.cells}


def test_speed_and_arithmetic_stand_side_by_side_as_ratios_to_the_baseline(run):
    summary, _ = run()
    pruned = cells(summary, "pruned")
    assert list(pruned)[1:3] == ["Speed-up", "Fewer MACs"]
    assert (pruned["Speed-up"].shown, pruned["Fewer MACs"].shown) == ("2.04×", "3.33×")  # noqa: RUF001
    assert pruned["Fewer MACs"].notes == ("306 k",)


def test_a_quantized_candidate_shows_its_speed_over_its_fp32_form_and_others_do_not(run):
    summary, _ = run()
    assert cells(summary, "int8-dynamic")["Speed-up"].notes[1] == "0.510× its FP32"  # noqa: RUF001
    assert len(cells(summary, "pruned")["Speed-up"].notes) == 1


def test_the_download_stands_below_the_size(run):
    summary, _ = run()
    assert cells(summary, "sparse")["Size"].notes == ("0% smaller", "download 76.0 KiB")


def test_all_rows_have_the_same_columns(run, failed_run):
    for summary in (run()[0], failed_run[0]):
        labels = [cell.label for cell in budget_cells(summary)]
        assert labels == [cell.label for cell in baseline_cells(summary)]
        assert all(labels == [cell.label for cell in row.cells] for row in rank_rows(summary))


def test_a_candidates_warnings_stand_in_its_row_and_those_of_the_selected_at_the_top(run):
    summary, details = run()
    slower = "quantization made it slower: 0.51x its FP32 form (95% interval 0.50 to 0.52)"
    page = Page(render(summary, details))
    start = page.text[: page.text.index("Accuracy, speed and size")]
    assert slower in page.text and slower not in start
    warned = [
        one.model_copy(update={"warnings": ["mind this: one", "and this: two"]})
        if one.name == summary.selected
        else one
        for one in summary.candidates
    ]
    page = Page(render(summary.model_copy(update={"candidates": warned}), details))
    start = page.text[: page.text.index("Accuracy, speed and size")]
    assert "mind this: one and this: two" in start
    assert any(one.get("aria-label") == "Mind of student-int8" for one in page.all("ul"))
