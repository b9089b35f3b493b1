"""The plot of accuracy, speed and size."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from mlites.report.plots.front import Point, bubble_key, front_plot
from mlites.report.sections.candidates import Row
from mlites.report.summary import Summary
from mlites.report.words import percent, size, times

WIDTHS = (("wide", 1040, 470), ("middle", 660, 430), ("narrow", 330, 380))


def draw_fronts(summary: Summary, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same plot drawn for wide, middle and narrow pages; the style sheet shows one."""
    base = summary.baseline
    shown = [point for row in rows if (point := _point(row)) is not None]
    if base is None or not shown:
        return []
    start = Point(
        0, base.name, 1.0, None, base.accuracy, base.size_bytes, "baseline",
        f"{base.name}, the baseline: {percent(base.accuracy)}, {size(base.size_bytes)}",
    )  # fmt: skip
    least = base.accuracy - summary.budget.accuracy_drop_points / 100
    return [
        {"width": name, "plot": front_plot([start, *shown], wide, high, least, summary.budget.speedup)}
        for name, wide, high in (("wide", 1040, 470), ("middle", 660, 430), ("narrow", 330, 380))
    ]


def _point(row: Row) -> Point | None:
    one = row.candidate
    if one.accuracy is None or one.speedup is None or one.size_bytes is None:
        return None
    hint = f"{one.name}: {percent(one.accuracy)}, {times(one.speedup)} faster, {size(one.size_bytes)}"
    return Point(
        number=row.number,
        name=one.name,
        speedup=one.speedup,
        interval=one.speedup_interval,
        accuracy=one.accuracy,
        size_bytes=one.size_bytes,
        kind="selected" if row.selected else "front" if one.on_front else "other",
        hint=hint,
    )


def draw_key(summary: Summary, rows: Sequence[Row]) -> Markup:
    sizes = [row.candidate.size_bytes for row in rows if row.candidate.size_bytes is not None]
    if summary.baseline is None or not sizes:
        return Markup()
    largest = max(summary.baseline.size_bytes, *sizes)
    round_size = 1 << (largest.bit_length() - 1)
    return bubble_key([round_size // 16, round_size // 4, round_size], largest, size)
