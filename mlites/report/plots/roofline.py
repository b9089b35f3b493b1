"""The roofline: what the machine can do at each arithmetic intensity, and where the models stand below it.

Source: Williams, Waterman & Patterson (2009), "Roofline: An Insightful Visual Performance Model".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import Axis, Frame, Scale, grid, log_axis
from mlites.report.plots.labels import LETTER, RANK, Box, Kind, place_label
from mlites.report.plots.marks import mark, reach
from mlites.report.plots.svg import element, line, svg, text

RADIUS = 6.0
STEPS = 12  # boxes along a slope that labels avoid


@dataclass(frozen=True)
class Roof:
    """A peak of the machine.

    Attributes:
        name: beside its line.
        gmacs_per_second: however much is computed for each byte.
    """

    name: str
    gmacs_per_second: float


@dataclass(frozen=True)
class RooflinePoint:
    """A model below the roof."""

    number: int  # its row in the table
    name: str
    intensity: float  # multiply-accumulates for each byte moved
    gmacs_per_second: float  # reached
    kind: Kind
    hint: str


def roofline_plot(
    points: Sequence[RooflinePoint], roofs: Sequence[Roof], gbytes_per_second: float, width: float, height: float
) -> Markup:
    """Both axes logarithmic: bandwidth is the slope on the left, the peaks are the ceilings.

    Args:
        points: the models, the baseline first.
        roofs: of the machine, at least one.
        gbytes_per_second: that memory streams.
        width: of the view box, in the pixels that the page shows it in.
        height: the same.
    """
    frame = Frame(60.0, width - 12, 18.0, height - 46)
    tops = [one.gmacs_per_second for one in roofs]
    knees = [top / gbytes_per_second for top in tops]
    low_x, high_x = _widened([one.intensity for one in points] + knees, 1.6)
    low_y, high_y = _widened([one.gmacs_per_second for one in points] + tops, 1.5)
    x = log_axis(low_x, high_x, frame.left, frame.right, int(width / 75))
    y = log_axis(low_y, high_y, frame.bottom, frame.top, int(height / 50))
    across = Scale(x, "multiply-accumulates for each byte →" if width > 400 else "MACs a byte →", _plain)
    parts = [grid(frame, across, Scale(y, "↑ GMAC/s", _plain))]
    start = max(low_x, low_y / gbytes_per_second)
    knee = max(knees)
    slope = (x(start), y(start * gbytes_per_second)), (x(knee), y(max(tops)))
    parts.append(line(*slope[0], *slope[1], "roof"))
    lines, boxes = _along(*slope), []
    for roof, at in zip(roofs, knees, strict=True):
        ceiling = y(roof.gmacs_per_second)
        parts.append(line(x(at), ceiling, frame.right, ceiling, "roof"))
        lines.append(Box(x(at), ceiling - 1, frame.right, ceiling + 1))
        words = f"{roof.name}, {_plain(roof.gmacs_per_second)} GMAC/s"
        parts.append(text(frame.right - 2, ceiling - 5, words, "roof-name", "end"))
        boxes.append(Box(frame.right - LETTER * len(words), ceiling - 17, frame.right, ceiling - 2))
    boxes.extend(extents := [_extent(one, x, y) for one in points])
    order = sorted(range(len(points)), key=lambda index: (-RANK[points[index].kind], -points[index].number))
    parts += [_mark(points[index], x, y) for index in order]
    inside = Box(frame.left + 2, frame.top, frame.right, frame.bottom - 2)
    for index in reversed(order):
        if label := place_label(points[index], extents[index], boxes, lines, inside, int(width / 22)):
            parts.append(label[0])
            boxes.append(label[1])
    return svg(width, height, _describe(points), *parts)


def _widened(values: Sequence[float], factor: float) -> tuple[float, float]:
    return min(values) / factor, max(values) * factor


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _extent(point: RooflinePoint, x: Axis, y: Axis) -> Box:
    across, down = x(point.intensity), y(point.gmacs_per_second)
    edge = reach(point.kind, RADIUS)
    return Box(across - edge, down - edge, across + edge, down + edge)


def _mark(point: RooflinePoint, x: Axis, y: Axis) -> Markup:
    across, down = x(point.intensity), y(point.gmacs_per_second)
    return element("g", element("title", point.hint), mark(point.kind, across, down, RADIUS))


def _along(begin: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """A rising line as small boxes."""
    across, down = ((end[axis] - begin[axis]) / STEPS for axis in (0, 1))
    places = [(begin[0] + index * across, begin[1] + index * down) for index in range(STEPS)]
    return [Box(left, bottom + down, left + across, bottom) for left, bottom in places]


def _describe(points: Sequence[RooflinePoint]) -> str:
    return " ".join(["Models below the machine's roofline.", *(f"{one.hint}." for one in points[:13])])
