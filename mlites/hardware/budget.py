"""One candidate against the budget: for each line whether it is met, missed, or cannot be told.

What is exact is decided by its value: sizes, memory, and accuracy, which holds for this test set. What is timed or
metered is decided by its 95% interval; where the limit lies inside it, the line is undecided. A class counts as having
lost only where chance does not explain the loss, or with few rows a class some class would always seem to.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlites.hardware.latency import Latency
from mlites.hardware.paired import Drop
from mlites.recipe import Budget

ROUNDING = 1e-9  # of the limit: 100 * (0.95 - 0.94) is a little more than 1

Interval = tuple[float, float]
Document = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the budget and what was found.

    Attributes:
        name: what is judged.
        value: None where it was not measured.
        limit: of the budget, in the unit.
        interval: 95%, None where the value is exact.
        least: the limit is a lower one.
        note: what the value is of, or why there is none.
    """

    name: str
    value: float | None
    limit: float
    unit: str
    interval: Interval | None = None
    least: bool = False
    note: str = ""

    @property
    def verdict(self) -> Literal["pass", "fail", "undecided"]:
        if self.value is None:
            return "undecided"
        beyond = [self._beyond(edge) > 0 for edge in self.interval or (self.value,)]
        return "fail" if all(beyond) else "undecided" if any(beyond) else "pass"

    @property
    def margin(self) -> float | None:
        """How far the value is on the right side of the limit, in the unit; negative on the wrong side."""
        if self.value is None:
            return None
        return self.value - self.limit if self.least else self.limit - self.value

    @property
    def miss(self) -> float:
        """The part of the limit by which the value misses it; of one unit where the limit is 0."""
        return 0.0 if self.value is None else self._beyond(self.value) / (self.limit or 1.0)

    @property
    def bound(self) -> str:
        return "at least" if self.least else "at most"

    def _beyond(self, value: float) -> float:
        """How far on the wrong side of the limit; rounding of floats forgiven."""
        excess = self.limit - value if self.least else value - self.limit
        return excess if excess > ROUNDING * max(1.0, abs(self.limit)) else 0.0

    @property
    def sentence(self) -> str:
        """A line that is not met, with value, limit and difference."""
        limit = f"the budget asks {self.bound} {figure(self.limit)} {self.unit}"
        if self.value is None:
            return f"{self.name} is not known, {limit}: undecided"
        value = f"{self.name} is {figure(self.value)} {self.unit}{f' ({self.note})' if self.note else ''}"
        if self.verdict == "undecided":
            low, high = self.interval or (self.value, self.value)
            return f"{value}, {limit}: undecided, its 95% interval is {figure(low)} to {figure(high)} {self.unit}"
        return f"{value}, {limit}: missed by {figure(self._beyond(self.value))} {self.unit}"

    def to_json(self) -> Document:
        return {
            "line": self.name,
            "value": self.value,
            "limit": self.limit,
            "unit": self.unit,
            "bound": self.bound,
            "margin": self.margin,
            "interval": None if self.interval is None else list(self.interval),
            "verdict": self.verdict,
            "note": self.note,
        }


@dataclass(frozen=True)
class Judgement:
    """What the budget says of one candidate.

    Attributes:
        lines: those that the budget has, in its order.
        undecided: what the recipe says of lines that cannot be told.
    """

    lines: tuple[Line, ...]
    undecided: Literal["reject", "deploy"] = "reject"

    @property
    def missed(self) -> tuple[Line, ...]:
        """Lines that keep the candidate from being deployed."""
        allowed = ("pass", "undecided") if self.undecided == "deploy" else ("pass",)
        return tuple(line for line in self.lines if line.verdict not in allowed)

    @property
    def within_budget(self) -> bool:
        return not self.missed

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each line that is missed or undecided; empty if all are met."""
        return tuple(line.sentence for line in self.lines if line.verdict != "pass")

    @property
    def miss(self) -> float:
        """Sum over the lines of the part by which the limit is missed; 0 if none is."""
        return sum(line.miss for line in self.missed)


def judge(verdict: Document, budget: Budget) -> Judgement:
    """Compare a verdict document with every line of the budget; exactly at the limit is within it."""
    return Judgement(tuple(_lines(verdict, budget)), budget.undecided)


def decided_by(budget: Budget) -> Callable[[Sequence[Latency]], bool]:
    """Whether the timings of teacher and candidate, in this order, settle the budget's lines on latency and speed.

    For `measure_latency`, which goes on while they do not. Looking again and again makes a wrong decision likelier only
    where the truth lies so near the limit that either decision is wrong by little.
    """

    def decided(latencies: Sequence[Latency]) -> bool:
        own = latencies[1]
        p95 = own.percentiles_ms()["p95"], own.percentile_intervals_ms()["p95"]
        return all(line.verdict != "undecided" for line in _timed(p95, (own.speedup, own.speedup_interval), budget))

    return decided


def _lines(verdict: Document, budget: Budget) -> Iterator[Line]:
    yield Line("accuracy drop", verdict["accuracy_drop_points"], budget.accuracy_drop_points, "points")
    if budget.class_drop_points is not None:
        yield _class_line(verdict, budget.class_drop_points)
    if budget.ece_rise_points is not None:
        before, after = verdict["baseline"].get("ece"), verdict.get("ece")
        rise = None if before is None or after is None else 100 * (after - before)
        yield Line("rise of the calibration error", rise, budget.ece_rise_points, "points")
    p95 = verdict["latency_ms"]["p95"], _pair((verdict.get("latency_interval_ms") or {}).get("p95"))
    yield from _timed(p95, (verdict["speedup"], _pair(verdict["speedup_interval"])), budget)
    yield from _running(verdict, budget)
    if budget.size_kib is not None:
        yield Line("size", verdict["size_bytes"] / 2**10, budget.size_kib, "KiB")
    if budget.download_kib is not None:
        yield Line("download", _scaled(verdict.get("download_bytes"), 2**10), budget.download_kib, "KiB")
    if budget.peak_memory_mib is not None:
        yield Line("peak memory", verdict["peak_memory_bytes"] / 2**20, budget.peak_memory_mib, "MiB")


def _timed(
    p95: tuple[float, Interval | None], speedup: tuple[float, Interval | None], budget: Budget
) -> Iterator[Line]:
    """Lines on what is timed in turns with the teacher; each of the figures with its interval."""
    if budget.p95_ms is not None:
        yield Line("latency p95", p95[0], budget.p95_ms, "ms", p95[1])
    if budget.speedup is not None:
        yield Line("speedup", speedup[0], budget.speedup, "x", speedup[1], least=True)


def _running(verdict: Document, budget: Budget) -> Iterator[Line]:
    """Lines on how the candidate runs by itself."""
    if budget.rows_per_second is not None:
        best = max(verdict.get("throughput") or [{}], key=lambda one: one.get("rows_per_second", 0.0))
        value, interval = best.get("rows_per_second"), _pair(best.get("interval"))
        note = f"batch {best['batch']}, {best['streams']} at once" if best else ""
        yield Line("throughput", value, budget.rows_per_second, "rows/s", interval, least=True, note=note)
    if budget.cold_start_ms is not None:
        start = verdict.get("cold_start_ms")
        yield Line("cold start", start and start["load"] + start["first"], budget.cold_start_ms, "ms")
    if budget.energy_mj is not None:
        energy = verdict.get("energy") or {}
        value, interval = energy.get("millijoules"), _pair(energy.get("interval"))
        yield Line("energy", value, budget.energy_mj, "mJ", interval, note=energy.get("kind", ""))


def _class_line(verdict: Document, limit: float) -> Line:
    """The largest loss among the classes whose loss chance does not explain; 0 where it explains all of them."""
    name, drops = "loss in a class", verdict.get("class_drops")
    if drops is None:
        return Line(name, None, limit, "points")
    names = verdict.get("classes") or [str(index) for index in range(len(drops))]
    found = [
        (Drop(one["rows"], one["lost"], one["won"]), label) for one, label in zip(drops, names, strict=True) if one
    ]
    certain = [(one, label) for one, label in found if one.beyond_chance]
    if certain:
        worst, label = max(certain, key=lambda pair: pair[0].points)
        return Line(name, worst.points, limit, "points", note=label)
    worst, label = max(found, key=lambda pair: pair[0].points, default=(Drop(1, 0, 0), ""))
    luck = f"{figure(worst.points)} points lost in {label}, which chance explains: p = {worst.p_value / 2:.2f}"
    return Line(name, 0.0, limit, "points", note=luck if worst.points > 0 else "")


def _pair(values: Iterable[float] | None) -> Interval | None:
    if values is None:
        return None
    low, high = values
    return low, high


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def figure(value: float) -> str:
    """Four significant digits without an exponent; whole numbers whole."""
    digits = f"{float(f'{value:.4g}'):f}".rstrip("0").rstrip(".")
    return digits if float(digits) else f"{value:.2g}"
