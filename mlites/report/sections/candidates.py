"""The table of candidates against baseline and budget."""

from dataclasses import dataclass

from mlites.report.plots.svg import TIMES
from mlites.report.summary import CandidateSummary, Latency, Summary
from mlites.report.words import NOTHING, count, milliseconds, percent, points, significant, size, smaller, times


@dataclass(frozen=True)
class Cell:
    """One measured value in the table of candidates."""

    label: str
    value: float | None
    shown: str
    notes: tuple[str, ...] = ()
    verdict: str | None = None  # pass, fail or undecided; None where the budget does not judge it


@dataclass(frozen=True)
class Row:
    """One candidate in the table."""

    number: int
    candidate: CandidateSummary
    selected: bool
    cells: list[Cell]
    own_marks: list[str]  # of the machine, where not all candidates share them


def rank_rows(summary: Summary) -> list[Row]:
    """Best first: selected, within budget, on the front, then by speed; not measured last."""

    def rank(one: CandidateSummary) -> tuple[bool, bool, bool, bool, float]:
        measured, chosen = one.accuracy is not None, one.name == summary.selected
        return (not measured, not chosen, not one.within_budget, not one.on_front, -(one.speedup or 0.0))

    ordered = sorted(summary.candidates, key=rank)
    measured = [one.marks for one in ordered if one.accuracy is not None]
    shared = set.intersection(*map(set, measured)) if measured else set()
    return [
        Row(
            number,
            one,
            one.name == summary.selected,
            _cells(one, summary),
            [mark for mark in one.marks if mark not in shared],
        )
        for number, one in enumerate(ordered, 1)
    ]


def fewer_macs(one: CandidateSummary, summary: Summary) -> float | None:
    """The baseline's multiply-accumulates over the candidate's, as a speed-up is of times."""
    base = summary.baseline
    if not one.macs or base is None or not base.macs:
        return None
    return base.macs / one.macs


def _cells(one: CandidateSummary, summary: Summary) -> list[Cell]:
    judged, latency = {line.line: line.verdict for line in one.lines}, one.latency_ms
    drop, interval = one.accuracy_drop_points, one.speedup_interval
    memory, fewer = one.peak_memory_bytes, fewer_macs(one, summary)
    return [
        Cell(
            "Accuracy",
            one.accuracy,
            NOTHING if one.accuracy is None else percent(one.accuracy),
            () if drop is None else (points(drop),),
            judged.get("accuracy drop"),
        ),
        Cell(
            "Speed-up",
            one.speedup,
            NOTHING if one.speedup is None else times(one.speedup),
            (
                *((f"{significant(interval[0])} to {significant(interval[1])}",) if interval else ()),
                *((f"{times(one.speedup_over_source)} its FP32",) if one.speedup_over_source else ()),
            ),
            judged.get("speedup"),
        ),
        Cell(
            "Fewer MACs",
            fewer,
            NOTHING if fewer is None else times(fewer),
            () if one.macs is None else (count(one.macs),),
        ),
        Cell(
            "p95",
            latency.p95 if latency else None,
            milliseconds(latency.p95) if latency else NOTHING,
            _percentiles(latency) if latency else (),
            judged.get("latency p95"),
        ),
        Cell(
            "Size",
            one.size_bytes,
            NOTHING if one.size_bytes is None else size(one.size_bytes),
            (*(() if one.size_ratio is None else (smaller(one.size_ratio),)), *_download(one.download_bytes)),
            judged.get("size"),
        ),
        Cell(
            "Memory",
            memory,
            NOTHING if memory is None else size(memory),
            (),
            judged.get("peak memory"),
        ),
    ]


def _percentiles(latency: Latency) -> tuple[str, ...]:
    return f"p50 {milliseconds(latency.p50)}", f"p99 {milliseconds(latency.p99)}"


def _download(packed: int | None) -> tuple[str, ...]:
    return () if packed is None else (f"download {size(packed)}",)


def baseline_cells(summary: Summary) -> list[Cell]:
    """The baseline's figures, cell by cell as a candidate's."""
    base = summary.baseline
    if base is None:
        return []
    memory = base.peak_memory_bytes
    return [
        Cell("Accuracy", base.accuracy, percent(base.accuracy)),
        Cell("Speed-up", 1.0, f"1{TIMES}"),
        Cell("Fewer MACs", 1.0, f"1{TIMES}", (count(base.macs),)) if base.macs else Cell("Fewer MACs", None, NOTHING),
        Cell("p95", base.latency_ms.p95, milliseconds(base.latency_ms.p95), _percentiles(base.latency_ms)),
        Cell("Size", base.size_bytes, size(base.size_bytes), _download(base.download_bytes)),
        Cell("Memory", memory, NOTHING if memory is None else size(memory)),
    ]


def budget_cells(summary: Summary) -> list[Cell]:
    """The budget's limits in the same cells, empty where it sets none."""
    budget, base = summary.budget, summary.baseline
    most = budget.accuracy_drop_points
    drop = f"≤ {most:g} point{'s' if most != 1 else ''} lost"
    accuracy = Cell("Accuracy", most, f"≥ {percent(base.accuracy - most / 100)}", (drop,)) if base else None
    limits = [
        ("Speed-up", budget.speedup, "≥ {:g}" + TIMES),
        ("Fewer MACs", None, ""),
        ("p95", budget.p95_ms, "≤ {:g} ms"),
        ("Size", budget.size_kib, "≤ {:g} KiB"),
        ("Memory", budget.peak_memory_mib, "≤ {:g} MiB"),
    ]
    return [
        accuracy or Cell("Accuracy", most, drop),
        *(Cell(label, limit, NOTHING if limit is None else words.format(limit)) for label, limit, words in limits),
    ]
