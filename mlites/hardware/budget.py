"""One candidate against the budget: which lines it misses, and by how much."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlites.recipe import Budget

ROUNDING = 1e-9  # of the limit: 100 * (0.95 - 0.94) is a little more than 1


@dataclass(frozen=True)
class Judgement:
    """What the budget says of one candidate.

    Attributes:
        reasons: one sentence for each line missed, with value, limit and difference; empty if none is.
        miss: sum over the missed lines of the part by which the limit is missed; 0 if none is.
    """

    reasons: tuple[str, ...]
    miss: float

    @property
    def within_budget(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class _Line:
    name: str
    value: float
    limit: float
    unit: str
    least: bool = False  # the limit is a lower one

    @property
    def excess(self) -> float:
        """How far on the wrong side of the limit, in the unit; rounding of floats forgiven."""
        excess = self.limit - self.value if self.least else self.value - self.limit
        return excess if excess > ROUNDING * max(1.0, abs(self.limit)) else 0.0


def judge(verdict: dict[str, Any], budget: Budget) -> Judgement:
    """Compare a verdict document with every line of the budget; exactly at the limit is within it."""
    missed = [line for line in _lines(verdict, budget) if line.excess]
    return Judgement(tuple(map(_sentence, missed)), sum(map(_part, missed)))


def _lines(verdict: dict[str, Any], budget: Budget) -> Iterator[_Line]:
    yield _Line("accuracy drop", verdict["accuracy_drop_points"], budget.accuracy_drop_points, "points")
    if budget.p95_ms is not None:
        yield _Line("latency p95", verdict["latency_ms"]["p95"], budget.p95_ms, "ms")
    if budget.speedup is not None:
        yield _Line("speedup", verdict["speedup"], budget.speedup, "x", least=True)
    if budget.size_kib is not None:
        yield _Line("size", verdict["size_bytes"] / 2**10, budget.size_kib, "KiB")
    if budget.peak_memory_mib is not None:
        yield _Line("peak memory", verdict["peak_memory_bytes"] / 2**20, budget.peak_memory_mib, "MiB")


def _sentence(line: _Line) -> str:
    bound = "at least" if line.least else "at most"
    value, limit, excess = (f"{_number(value)} {line.unit}" for value in (line.value, line.limit, line.excess))
    return f"{line.name} is {value}, the budget asks {bound} {limit}: missed by {excess}"


def _part(line: _Line) -> float:
    """The miss as a part of the limit; of one point where the budget allows no drop at all."""
    return line.excess / (line.limit or 1.0)


def _number(value: float) -> str:
    """Four significant digits without an exponent; whole numbers whole."""
    digits = f"{float(f'{value:.4g}'):f}".rstrip("0").rstrip(".")
    return digits if float(digits) else f"{value:.2g}"
