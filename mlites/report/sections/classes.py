"""What the selected candidate changes for each class, and whether it knows how sure it may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlites.report.details import Bin, Details
from mlites.report.plots.calibration import Reliability, calibration_plot
from mlites.report.plots.spans import Span, spans_plot
from mlites.report.sections.mistakes import chosen_verdict
from mlites.report.summary import CandidateSummary, ClassDrop, Summary
from mlites.report.words import NOTHING, percent, points, significant

WIDTHS = (("wide", 1040), ("middle", 660), ("narrow", 330))
MOST = 12  # classes in the plot, the greatest losses


@dataclass(frozen=True)
class ClassChange:
    """One class before and after, in words."""

    name: str
    before: str
    after: str
    change: str
    interval: str
    chance: str


def _chosen(summary: Summary) -> CandidateSummary | None:
    """The selected candidate, or in a failed run the first that was measured."""
    measured = [one for one in summary.candidates if one.class_drops]
    chosen = summary.selected_candidate
    return chosen if chosen and chosen.class_drops else next(iter(measured), None)


def _drops(one: CandidateSummary, classes: Sequence[str]) -> list[tuple[str, ClassDrop]]:
    """Of the classes that have test rows, the greatest loss first."""
    if len(one.class_drops) != len(classes):
        return []
    found = [(name, drop) for name, drop in zip(classes, one.class_drops, strict=True) if drop is not None]
    return sorted(found, key=lambda pair: -pair[1].points)


def draw_classes(summary: Summary, classes: Sequence[str]) -> dict[str, Any] | None:
    """The classes that lose most, as plots for three widths, and all of them as a table."""
    one = _chosen(summary)
    drops = _drops(one, classes) if one else []
    if one is None or not drops:
        return None
    limit = summary.budget.class_drop_points
    spans = [_span(name, drop, limit) for name, drop in drops[:MOST]]
    title = f"Points of recall that {one.name} loses in each class"
    return {
        "name": one.name,
        "more": max(len(drops) - MOST, 0),
        "plots": [
            {"width": name, "plot": spans_plot(title, spans, limit, "points of recall lost", wide)}
            for name, wide in WIDTHS
        ],
        "rows": _changes(summary, one, classes),
    }


def _span(name: str, drop: ClassDrop, limit: float | None) -> Span:
    hint = f"{name}: {points(drop.points)}; of {drop.rows} rows {drop.lost} lost and {drop.won} won"
    beyond = drop.points > (limit or 0.0) and drop.lost > drop.won and drop.p_value <= 0.1
    note = f"\N{MINUS SIGN}{drop.lost} +{drop.won} of {drop.rows}"
    return Span(name, drop.points, drop.interval, beyond, note, hint)


def _changes(summary: Summary, one: CandidateSummary, classes: Sequence[str]) -> list[ClassChange]:
    before = summary.baseline.per_class if summary.baseline else []
    return [
        ClassChange(
            name=name,
            before=_share(before, index),
            after=_share(one.per_class, index),
            change=NOTHING if drop is None else points(drop.points),
            interval=NOTHING if drop is None else f"{points(drop.interval[1])} to {points(drop.interval[0])}",
            chance=NOTHING if drop is None else significant(drop.p_value, 2),
        )
        for index, (name, drop) in enumerate(zip(classes, one.class_drops, strict=True))
    ]


def _share(values: Sequence[float | None], index: int) -> str:
    value = values[index] if index < len(values) else None
    return NOTHING if value is None else percent(value, 1)


def draw_calibration(summary: Summary, details: Details) -> dict[str, Any] | None:
    """Confidence against accuracy of the selected candidate and of the baseline."""
    verdict = chosen_verdict(summary, details)
    if verdict is None or not verdict.calibration:
        return None
    models = [Reliability(verdict.candidate, "first", _bins(verdict.calibration))]
    if verdict.baseline and verdict.baseline.calibration:
        models.insert(0, Reliability("baseline", "second", _bins(verdict.baseline.calibration)))
    own = next((one.ece for one in summary.candidates if one.name == verdict.candidate), None)
    base = summary.baseline.ece if summary.baseline else None
    return {
        "name": verdict.candidate,
        "plot": calibration_plot(models),
        "ece": NOTHING if own is None else percent(own, 2),
        "baseline_ece": NOTHING if base is None else percent(base, 2),
    }


def _bins(found: Sequence[Bin]) -> list[tuple[int, float, float]]:
    return [(one.rows, one.confidence, one.accuracy) for one in found]
