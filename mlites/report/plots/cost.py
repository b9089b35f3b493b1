"""Measured speed against arithmetic saved, both as ratios to the baseline: what fewer multiply-accumulates bought."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import Axis, Frame, Scale, grid, log_axis
from mlites.report.plots.labels import RANK, Box, Kind, place_label
from mlites.report.plots.marks import mark, reach
from mlites.report.plots.svg import TIMES, element, line, svg

RADIUS = 6.0
STEPS = 24  # boxes along the diagonal that labels avoid


@dataclass(frozen=True)
class CostPoint:
    """A model in the plot."""

    number: int  # its row in the table
    name: str
    fewer_macs: float  # the baseline's multiply-accumulates / its own
    speedup: float
    interval: tuple[float, float] | None
    kind: Kind
    hint: str


def cost_plot(points: Sequence[CostPoint], width: float, height: float) -> Markup:
    """Both axes logarithmic; on the diagonal a model is as much faster as it computes less, below it is not.

    Args:
        points: the baseline, at 1 and 1, first; labels give way where they would collide.
        width: of the view box, in the pixels that the page shows it in.
        height: the same.
    """
    frame = Frame(52.0, width - 12, 14.0, height - 46)
    speeds = [edge for one in points for edge in (one.speedup, *(one.interval or ()))]
    x = _axis([one.fewer_macs for one in points], frame.left, frame.right, int(width / 70))
    y = _axis(speeds, frame.bottom, frame.top, int(height / 55))
    low, high = max(x.low, y.low), min(x.high, y.high)
    ends = (x.axis(low), y.axis(low)), (x.axis(high), y.axis(high))
    across = Scale(x.axis, "fewer multiply-accumulates →", lambda tick: f"{tick:g}{TIMES}")
    upwards = Scale(y.axis, "↑ faster", lambda tick: f"{tick:g}{TIMES}")
    parts = [grid(frame, across, upwards), line(*ends[0], *ends[1], "diagonal")]
    extents = [_extent(one, x.axis, y.axis) for one in points]
    order = sorted(range(len(points)), key=lambda index: (-RANK[points[index].kind], -points[index].number))
    parts += [_mark(points[index], x.axis, y.axis) for index in order]  # the chosen one last, on top
    boxes, inside = list(extents), Box(frame.left + 2, frame.top, frame.right, frame.bottom - 2)
    for index in reversed(order):
        label = place_label(points[index], extents[index], boxes, _along(*ends), inside, int(width / 22))
        if label:
            parts.append(label[0])
            boxes.append(label[1])
    return svg(width, height, _describe(points), *parts)


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    axis: Axis


def _axis(values: Sequence[float], start: float, end: float, count: int) -> _Range:
    widen = max((max(values) / min(values)) ** 0.09, 1.1)
    low, high = min(values) / widen, max(values) * widen
    return _Range(low, high, log_axis(low, high, start, end, count))


def _extent(point: CostPoint, x: Axis, y: Axis) -> Box:
    across, down = x(point.fewer_macs), y(point.speedup)
    low, high = point.interval or (point.speedup, point.speedup)
    edge = reach(point.kind, RADIUS)
    return Box(across - edge, min(down - edge, y(high)), across + edge, max(down + edge, y(low)))


def _mark(point: CostPoint, x: Axis, y: Axis) -> Markup:
    across, down = x(point.fewer_macs), y(point.speedup)
    parts = [element("title", point.hint)]
    if point.interval:
        parts.append(line(across, y(point.interval[0]), across, y(point.interval[1]), "interval"))
    parts.append(mark(point.kind, across, down, RADIUS))
    return element("g", *parts)


def _along(begin: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """A slanted line as small boxes."""
    across, down = ((end[axis] - begin[axis]) / STEPS for axis in (0, 1))
    found = []
    for index in range(STEPS):
        xs = sorted((begin[0] + index * across, begin[0] + (index + 1) * across))
        ys = sorted((begin[1] + index * down, begin[1] + (index + 1) * down))
        found.append(Box(xs[0], ys[0], xs[1], ys[1]))
    return found


def _describe(points: Sequence[CostPoint]) -> str:
    return " ".join(["Measured speed against multiply-accumulates saved.", *(f"{one.hint}." for one in points[1:13])])
