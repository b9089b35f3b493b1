from mlites.report.html import render
from tests.report.page import Page


def test_mistakes_are_counted_per_pair_of_classes(run):
    summary, details = run()
    counts = next(one.confusion for one in details.verdicts if one.candidate == "student-int8")
    wrong = [(count, r, c) for r, row in enumerate(counts) for c, count in enumerate(row) if r != c and count]
    text = Page(render(summary, details)).text
    assert all(f"true {r}, predicted {c}: {count} (" in text for count, r, c in wrong)
    assert "Most frequent mistakes of student-int8" in text


def test_no_mistakes_are_said_to_be_none(run):
    summary, details = run()
    perfect = [[36 if row == column else 0 for column in range(10)] for row in range(10)]
    verdicts = [one.model_copy(update={"confusion": perfect}) for one in details.verdicts]
    assert (
        "No mistakes on the test rows." in Page(render(summary, details.model_copy(update={"verdicts": verdicts}))).text
    )


def test_a_matrix_that_does_not_fit_the_classes_is_left_out(run):
    summary, details = run()
    verdicts = [one.model_copy(update={"confusion": [[1]]}) for one in details.verdicts]
    page = Page(render(summary, details.model_copy(update={"verdicts": verdicts})))
    assert "Confusion matrix of student-int8" not in str(page.elements)
    assert "Confusion matrix of teacher" in str(page.elements)
