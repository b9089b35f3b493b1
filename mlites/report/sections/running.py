"""How the models run: throughput, cold start, memory, energy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlites.report.sections.candidates import Row
from mlites.report.summary import (
    Baseline,
    CandidateSummary,
    Energy,
    Figures,
    Latency,
    LatencyInterval,
    Summary,
    Throughput,
)
from mlites.report.words import NOTHING, energy, milliseconds, rate, size


@dataclass(frozen=True)
class Shown:
    """A figure and what belongs to it."""

    shown: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runs:
    """One model by itself."""

    name: str
    selected: bool
    baseline: bool
    figures: list[Shown]


COLUMNS = ["Latency p50", "Latency p95", "Latency p99", "Throughput", "Cold start", "Peak memory", "Energy"]


def list_runs(summary: Summary, rows: Sequence[Row]) -> list[Runs]:
    """The baseline and every measured candidate; none where none was measured."""
    base = summary.baseline
    measured = [row for row in rows if row.candidate.latency_ms is not None]
    if base is None or not measured:
        return []
    runs = [Runs(row.candidate.name, row.selected, False, _figures(row.candidate)) for row in measured]
    return [Runs(base.name, False, True, _figures(base)), *runs]


def _figures(one: Baseline | CandidateSummary) -> list[Shown]:
    start, memory = one.cold_start_ms, one.peak_memory_bytes
    return [
        *(_percentile(one.latency_ms, one.latency_interval_ms, key) for key in ("p50", "p95", "p99")),
        _throughput(one.throughput),
        Shown(NOTHING)
        if start is None
        else Shown(
            milliseconds(start.load + start.first),
            (f"load {milliseconds(start.load)}", f"first {milliseconds(start.first)}"),
        ),
        Shown(NOTHING if memory is None else size(memory)),
        _energy(one.energy),
    ]


def _percentile(latency: Latency | None, intervals: LatencyInterval | None, key: str) -> Shown:
    if latency is None:
        return Shown(NOTHING)
    value = milliseconds(getattr(latency, key))
    edges = getattr(intervals, key) if intervals else None
    return Shown(value, (f"{milliseconds(edges[0])} to {milliseconds(edges[1])}",) if edges else ())


def _throughput(found: Sequence[Throughput]) -> Shown:
    if not found:
        return Shown(NOTHING)
    best = max(found, key=lambda one: one.rows_per_second)
    edges = (f"{rate(best.interval[0])} to {rate(best.interval[1])}",) if best.interval else ()
    return Shown(rate(best.rows_per_second), (*edges, f"batch {best.batch}, {_streams(best.streams)}"))


def _streams(streams: int) -> str:
    return f"{streams} stream{'s' if streams != 1 else ''}"


def _energy(found: Energy | None) -> Shown:
    if found is None:
        return Shown(NOTHING)
    edges = [f"{energy(found.interval[0])} to {energy(found.interval[1])}"] if found.interval else []
    return Shown(energy(found.millijoules), (found.kind, *edges))


def energy_sources(summary: Summary) -> list[str]:
    """How the energies were found."""
    known = [summary.baseline, *summary.candidates]
    found = [one.energy for one in known if one is not None and one.energy is not None]
    return list(dict.fromkeys(f"{one.kind}: {one.source}" for one in found if one.source))


def list_throughputs(summary: Summary, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Every batch size and number of streams, for baseline and candidates; None where only one was measured."""
    models: list[tuple[str, Figures]] = [("baseline", summary.baseline)] if summary.baseline else []
    models += [(row.candidate.name, row.candidate) for row in rows if row.candidate.throughput]
    kinds = sorted({(one.batch, one.streams) for _, model in models for one in model.throughput})
    if len(kinds) < 2:
        return None
    cells = []
    for name, model in models:
        by_kind = {(one.batch, one.streams): one for one in model.throughput}
        cells.append(
            (name, [NOTHING if kind not in by_kind else rate(by_kind[kind].rows_per_second) for kind in kinds])
        )
    return {"kinds": [f"batch {batch}, {_streams(streams)}" for batch, streams in kinds], "rows": cells}


def not_narrow(candidates: Sequence[CandidateSummary]) -> list[str]:
    """Candidates whose speed is less certain than the profile asks."""
    return [one.name for one in candidates if one.speedup_narrow is False]
