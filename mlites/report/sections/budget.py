"""Each candidate against each line of the budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.bar import bullet
from mlites.report.sections.candidates import Row
from mlites.report.summary import BudgetLine
from mlites.report.words import NOTHING, quantity

CHIPS = {"pass": ("good", "✓ pass"), "fail": ("bad", "✕ fail"), "undecided": ("caution", "? undecided")}
MARKS = {"pass": "✓", "fail": "✕", "undecided": "?"}


@dataclass(frozen=True)
class Judged:
    """One line of the budget for one candidate, in words."""

    name: str
    note: str
    value: str
    limit: str
    margin: str
    interval: str
    picture: Markup
    verdict: str
    chip: tuple[str, str]


def judged_lines(lines: Sequence[BudgetLine]) -> list[Judged]:
    """All that the budget says of one candidate."""
    return [
        Judged(
            name=one.line,
            note=one.note,
            value=_or_nothing(one.value, one.unit),
            limit=f"{'≥' if one.bound == 'at least' else '≤'} {quantity(one.limit, one.unit)}",
            margin=_or_nothing(one.margin, one.unit),
            interval=NOTHING
            if one.interval is None
            else " to ".join(quantity(edge, one.unit) for edge in one.interval),
            picture=Markup()
            if one.value is None
            else bullet(one.value, one.interval, one.limit, one.bound == "at least"),
            verdict=one.verdict,
            chip=CHIPS[one.verdict],
        )
        for one in lines
    ]


@dataclass(frozen=True)
class Matrix:
    """All candidates against all lines: a mark and a value each."""

    lines: list[str]
    rows: list[tuple[Row, list[tuple[str, str, str]]]]


def compare_lines(rows: Sequence[Row]) -> Matrix:
    """Candidates that were judged, in the order of the table."""
    judged = [row for row in rows if row.candidate.lines]
    names = list(dict.fromkeys(f"{line.line}" for row in judged for line in row.candidate.lines))
    return Matrix(names, [(row, _cells(row, names)) for row in judged])


def _cells(row: Row, names: Sequence[str]) -> list[tuple[str, str, str]]:
    by_name = {line.line: line for line in row.candidate.lines}
    return [
        (one.verdict, MARKS[one.verdict], _or_nothing(one.value, one.unit)) if one else ("", "", NOTHING)
        for one in (by_name.get(name) for name in names)
    ]


def _or_nothing(value: float | None, unit: str) -> str:
    return NOTHING if value is None else quantity(value, unit)
