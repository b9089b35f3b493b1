"""What the selected candidate takes for what."""

from collections.abc import Sequence
from typing import Any

from mlites.report.details import Details, Verdict
from mlites.report.plots.confusion import confusion_plot
from mlites.report.summary import Summary


def chosen_verdict(summary: Summary, details: Details) -> Verdict | None:
    return next((one for one in details.verdicts if one.candidate == summary.selected), None) or next(
        (one for one in details.verdicts if one.confusion), None
    )


def _baseline_counts(verdict: Verdict) -> list[list[int]]:
    return verdict.baseline.confusion if verdict.baseline else []


def _fits(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bool:
    return len(counts) == len(classes) > 0 and all(len(row) == len(classes) for row in counts)


def draw_matrices(summary: Summary, details: Details, classes: list[str]) -> list[dict[str, Any]]:
    verdict = chosen_verdict(summary, details)
    if verdict is None:
        return []
    baseline = summary.baseline.name if summary.baseline else "baseline"
    found = [(verdict.candidate, "", verdict.confusion), (baseline, "baseline", _baseline_counts(verdict))]
    return [
        {
            "name": name,
            "note": note,
            "plot": confusion_plot(f"Confusion matrix of {name}; rows are the true classes", counts, classes),
        }
        for name, note, counts in found
        if _fits(counts, classes)
    ]


def list_confusions(summary: Summary, details: Details, classes: list[str]) -> list[dict[str, Any]]:
    """The mistakes made most often, with the baseline's count of the same."""
    verdict = chosen_verdict(summary, details)
    if verdict is None or not _fits(verdict.confusion, classes):
        return []
    base = _baseline_counts(verdict) if _fits(_baseline_counts(verdict), classes) else None
    pairs = [
        (count, row, column)
        for row, counts in enumerate(verdict.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        {
            "true": classes[row],
            "predicted": classes[column],
            "count": count,
            "share": count / sum(verdict.confusion[row]),
            "baseline": base[row][column] if base else None,
        }
        for count, row, column in pairs[:8]
    ]
