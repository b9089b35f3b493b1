"""What fewer multiply-accumulates bought."""

from collections.abc import Sequence
from typing import Any

from mlites.report.plots.cost import CostPoint, cost_plot
from mlites.report.sections.candidates import Row, fewer_macs
from mlites.report.summary import Summary
from mlites.report.words import times

WIDTHS = (("wide", 1040, 400), ("middle", 660, 400), ("narrow", 330, 360))


def draw_costs(summary: Summary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same plot drawn for wide, middle and narrow pages; none where no candidate computes another amount."""
    base = summary.baseline
    shown = [point for row in rows if (point := _point(row, summary)) is not None]
    if base is None or all(point.fewer_macs == 1 for point in shown):
        return []
    start = CostPoint(0, base.name, 1.0, 1.0, None, "baseline", f"{base.name}, the baseline")
    return [{"width": name, "plot": cost_plot([start, *shown], wide, high)} for name, wide, high in WIDTHS]


def _point(row: Row, summary: Summary) -> CostPoint | None:
    one, fewer = row.candidate, fewer_macs(row.candidate, summary)
    if fewer is None or one.speedup is None:
        return None
    return CostPoint(
        number=row.number,
        name=one.name,
        fewer_macs=fewer,
        speedup=one.speedup,
        interval=one.speedup_interval,
        kind="selected" if row.selected else "front" if one.on_front else "other",
        hint=f"{one.name}: {times(one.speedup)} as fast with {times(1 / fewer)} the multiply-accumulates",
    )
