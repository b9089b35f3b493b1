"""What each candidate pays for what it gains."""

from collections.abc import Callable, Sequence
from typing import Any

from mlites.report.plots.labels import Kind
from mlites.report.plots.parallel import Strand, Trait, parallel_plot
from mlites.report.sections.candidates import Row
from mlites.report.summary import Baseline, CandidateSummary, Figures, Summary
from mlites.report.words import percent, size, times

WIDTHS = (("wide", 1040, 380, 7), ("middle", 660, 380, 7), ("narrow", 330, 360, 5))
MOST = 40  # candidates; of more only the front is drawn


def draw_tradeoffs(summary: Summary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same plot drawn for wide, middle and narrow pages; narrow ones show fewer axes."""
    base = summary.baseline
    shown = [row for row in rows if row.candidate.accuracy is not None]
    if len(shown) > MOST:
        shown = [row for row in shown if row.candidate.on_front or row.selected]
    if base is None or not shown:
        return []
    traits = _traits(base, [row.candidate for row in shown])
    strands = [Strand(0, base.name, "baseline", f"{base.name}, the baseline"), *map(_strand, shown)]
    return [
        {"width": name, "plot": parallel_plot(strands, traits[:most], wide, high)} for name, wide, high, most in WIDTHS
    ]


def _strand(row: Row) -> Strand:
    one = row.candidate
    words = [one.name]
    if one.accuracy is not None and one.speedup and one.size_bytes is not None:
        words.append(f"{percent(one.accuracy)}, {times(one.speedup)} faster, {size(one.size_bytes)}")
    kind: Kind = "selected" if row.selected else "front" if one.on_front else "other"
    return Strand(row.number, one.name, kind, ": ".join(words))


def _traits(base: Baseline, candidates: Sequence[CandidateSummary]) -> list[Trait]:
    """Accuracy, and ratios to the baseline of all that is known of some candidate."""
    accuracy = Trait("accuracy", percent, [base.accuracy, *(one.accuracy for one in candidates)], logarithmic=False)
    ratios: list[tuple[str, list[float | None]]] = [
        ("speed", [one.speedup for one in candidates]),
        ("size", [one.size_ratio for one in candidates]),
        ("memory", [_saved(base.peak_memory_bytes, one.peak_memory_bytes) for one in candidates]),
        ("energy", [_less(base, one, _energy) for one in candidates]),
        ("cold start", [_less(base, one, _start) for one in candidates]),
        ("throughput", [_saved(best_rate(one), best_rate(base)) for one in candidates]),
    ]
    known = [Trait(name, times, [1.0, *values]) for name, values in ratios if any(values)]
    return [accuracy, *known]


def _less(base: Figures, one: Figures, of: Callable[[Figures], float | None]) -> float | None:
    return _saved(of(base), of(one))


def _saved(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None


def _energy(one: Figures) -> float | None:
    return one.energy.millijoules if one.energy else None


def _start(one: Figures) -> float | None:
    return one.cold_start_ms.load + one.cold_start_ms.first if one.cold_start_ms else None


def best_rate(one: Figures) -> float | None:
    """Rows in a second at the best of the batch sizes and streams."""
    return max((each.rows_per_second for each in one.throughput), default=None)
