"""How close the models are to what the machine can do, and which operators take the time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlites.report.plots.labels import Kind
from mlites.report.plots.roofline import Roof, RooflinePoint, Slope, roofline_plot
from mlites.report.sections.candidates import Row
from mlites.report.summary import Figures, Operator, Summary
from mlites.report.words import NOTHING, count, milliseconds, percent, significant, size

WIDTHS = (("wide", 1040, 430), ("middle", 660, 420), ("narrow", 330, 380))


@dataclass(frozen=True)
class Reach:
    """One model against the machine's limit, in words."""

    name: str
    selected: bool
    cells: list[str]


@dataclass(frozen=True)
class Profile:
    """The costliest operators of one model."""

    name: str
    operators: list[Operator]


COLUMNS = ["MACs of a batch", "Bytes moved", "MACs a byte", "At best", "Of that reached", "Bound by"]


def draw_rooflines(summary: Summary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same plot drawn for wide, middle and narrow pages; none where peaks or models are not known."""
    peaks = summary.environment.peaks if summary.environment else None
    points = [point for number, name, kind, one in _models(summary, rows) if (point := _point(number, name, kind, one))]
    if peaks is None or not points:
        return []
    roofs = [Roof("INT8 peak", peaks.int8_gmacs_per_second), Roof("FP32 peak", peaks.fp32_gmacs_per_second)]
    slopes = [Slope("from memory", peaks.stream_gbytes_per_second)]
    if cached := max((rate for _, rate in peaks.cached_gbytes_per_second), default=None):
        slopes.append(Slope("from cache", cached))
    return [{"width": name, "plot": roofline_plot(points, roofs, slopes, wide, high)} for name, wide, high in WIDTHS]


def _models(summary: Summary, rows: Sequence[Row]) -> list[tuple[int, str, Kind, Figures]]:
    found: list[tuple[int, str, Kind, Figures]] = []
    if summary.baseline:
        found.append((0, summary.baseline.name, "baseline", summary.baseline))
    for row in rows:
        kind: Kind = "selected" if row.selected else "front" if row.candidate.on_front else "other"
        found.append((row.number, row.candidate.name, kind, row.candidate))
    return found


def _point(number: int, name: str, kind: Kind, one: Figures) -> RooflinePoint | None:
    """Logarithmic axes know neither zero nor less."""
    roof = one.roofline
    if roof is None or not roof.macs or roof.intensity <= 0 or roof.fraction_of_limit <= 0 or roof.limit_ms <= 0:
        return None
    reached = roof.macs / (roof.limit_ms / roof.fraction_of_limit) / 1e6
    hint = f"{name}: {significant(reached)} GMAC/s, {percent(roof.fraction_of_limit, 1)} of its limit, {roof.bound}"
    return RooflinePoint(number, name, roof.intensity, reached, kind, hint)


def list_reaches(summary: Summary, rows: Sequence[Row]) -> list[Reach]:
    """The baseline and every candidate whose roofline is known."""
    return [
        Reach(
            name,
            kind == "selected",
            [
                count(roof.macs) if roof.macs is not None else NOTHING,
                size(roof.bytes) if roof.bytes is not None else NOTHING,
                significant(roof.intensity),
                milliseconds(roof.limit_ms),
                percent(roof.fraction_of_limit, 1),
                roof.bound,
            ],
        )
        for _, name, kind, one in _models(summary, rows)
        if (roof := one.roofline) is not None
    ]


def list_profiles(summary: Summary, rows: Sequence[Row]) -> list[Profile]:
    """Operators of the selected candidate first, then of the others and the baseline."""
    found = [
        (kind != "selected", Profile(name, one.operators))
        for _, name, kind, one in _models(summary, rows)
        if one.operators
    ]
    return [profile for _, profile in sorted(found, key=lambda one: one[0])]
