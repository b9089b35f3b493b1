"""What each pass of a candidate's chain did."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlites.report.details import Provenance, Verdict
from mlites.report.sections.candidates import Row, fewer_macs
from mlites.report.sections.facts import Fact, Table, word_facts
from mlites.report.summary import Summary
from mlites.report.words import NOTHING, change, count, percent, points, size, times

NAMES = {"train": "teacher", "export": "export to ONNX", "qat": "training with the rounding of INT8"}


@dataclass(frozen=True)
class Figure:
    """One figure after a step and how it changed."""

    shown: str
    note: str


@dataclass(frozen=True)
class Did:
    """One step of a chain."""

    title: str
    trail: list[Figure]
    facts: list[Fact]
    tables: list[Table]


@dataclass(frozen=True)
class Chain:
    """The steps that made one candidate."""

    row: Row
    measured: str
    columns: list[str]
    steps: list[Did]

    @property
    def told(self) -> list[Did]:
        """Steps that found more than the figures of the trail."""
        return [step for step in self.steps if step.facts or step.tables]


Change = Callable[[float, float], str]
TRAIL: list[tuple[str, tuple[str, ...], Callable[[float], str], Change]] = [
    ("Validation accuracy", ("validation_accuracy",), percent, lambda before, after: points(100 * (before - after))),
    ("Parameters", ("parameters", "parameters_after"), count, change),
    ("MACs", ("macs", "macs_after"), count, change),
    ("Size of the file", ("size_bytes", "size_bytes_after"), size, change),
]


def list_chains(summary: Summary, rows: Sequence[Row], verdicts: Iterable[Verdict]) -> list[Chain]:
    """One for each measured candidate, in the order of the table."""
    by_name = {verdict.candidate: verdict for verdict in verdicts}
    return [
        _chain(row, summary, by_name[row.candidate.name])
        for row in rows
        if row.candidate.name in by_name and by_name[row.candidate.name].provenance
    ]


def _chain(row: Row, summary: Summary, verdict: Verdict) -> Chain:
    titles = _titles(verdict.provenance, verdict.passes)
    used = [one for one in TRAIL if any(_known(step, one[1]) is not None for step in verdict.provenance)]
    last: dict[str, float] = {}
    steps = []
    for title, step in zip(titles, verdict.provenance, strict=True):
        trail = []
        for label, keys, word, compare in used:
            value = _known(step, keys)
            before = last.get(label, _known(step, [f"{keys[0]}_before"]))
            note = "" if value is None or before is None else compare(before, value)
            trail.append(Figure(NOTHING if value is None else word(value), note))
            if value is not None:
                last[label] = value
        facts, tables = word_facts(_others(step))
        steps.append(Did(title, trail, facts, tables))
    return Chain(row, _measured(row, summary), [label for label, *_ in used], steps)


def _titles(steps: Sequence[Provenance], passes: Sequence[str]) -> list[str]:
    """The recipe's words for its passes, which are the last steps but for the export; for others their kind."""
    labels = list(passes)
    titles: list[str] = []
    for step in reversed(steps):
        fits = bool(labels) and labels[-1].split()[0] == step.step
        titles.append(labels.pop() if fits else NAMES.get(step.step, step.step))
    return titles[::-1]


def _known(step: Provenance, keys: Sequence[str]) -> float | None:
    """The first of these facts that is a number."""
    found = (step.metrics.get(key) for key in keys)
    return next((one for one in found if isinstance(one, int | float) and not isinstance(one, bool)), None)


def _others(step: Provenance) -> dict[str, Any]:
    """Facts that the trail does not show; of what changed, both sides stay together."""
    shown = {key for _, keys, _, _ in TRAIL for key in keys} | {f"{keys[0]}_before" for _, keys, _, _ in TRAIL}
    return {key: value for key, value in step.metrics.items() if key not in shown}


def _measured(row: Row, summary: Summary) -> str:
    """What the chain came to on the hardware."""
    one, fewer = row.candidate, fewer_macs(row.candidate, summary)
    if one.speedup is None:
        return ""
    words = [f"{times(one.speedup)} the teacher's speed"]
    if fewer is not None:
        words.append(f"with {percent(1 / fewer, 1)} of its multiply-accumulates")
    if one.speedup_over_source is not None:
        words.append(f"and {times(one.speedup_over_source)} the speed of its own FP32 form")
    return "Measured: " + " ".join(words) + "."
