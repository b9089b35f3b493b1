"""The roofline: what the machine can do at each arithmetic intensity, and where the models stand below it.

Source: Williams, Waterman & Patterson (2009), "Roofline: An Insightful Visual Performance Model".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import Axis, Frame, Scale, grid, log_axis
from mlites.report.plots.labels import LETTER, RANK, Box, Kind, place_label
from mlites.report.plots.marks import mark, reach
from mlites.report.plots.svg import element, line, shown, svg, text

RADIUS = 6.0
NARROW = 400.0  # pixels in which there is no room for all words
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
class Slope:
    """A bandwidth of the machine.

    Attributes:
        name: along its line.
        gbytes_per_second: 10^9 bytes.
    """

    name: str
    gbytes_per_second: float


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
    points: Sequence[RooflinePoint], roofs: Sequence[Roof], slopes: Sequence[Slope], width: float, height: float
) -> Markup:
    """Both axes logarithmic: bandwidths are the slopes on the left, the peaks of arithmetic are the ceilings.

    Args:
        points: the models, the baseline first.
        roofs: of the machine, at least one.
        slopes: of the machine, at least one.
        width: of the view box, in the pixels that the page shows it in.
        height: the same.
    """
    frame = Frame(60.0, width - 12, 18.0, height - 46)
    tops, fastest = [one.gmacs_per_second for one in roofs], max(one.gbytes_per_second for one in slopes)
    knees = [top / fastest for top in tops]
    low_x, high_x = _widened([one.intensity for one in points] + knees, 1.6)
    low_y, high_y = _widened([one.gmacs_per_second for one in points] + tops, 1.5)
    x = log_axis(low_x, high_x, frame.left, frame.right, int(width / 75))
    y = log_axis(low_y, high_y, frame.bottom, frame.top, int(height / 50))
    across = Scale(x, "multiply-accumulates for each byte →" if width > NARROW else "MACs a byte →", _plain)
    parts = [grid(frame, across, Scale(y, "↑ GMAC/s", _plain))]
    lines, boxes = [], []
    for one in slopes:
        start = max(low_x, low_y / one.gbytes_per_second)
        knee = min(max(tops) / one.gbytes_per_second, high_x)
        if knee > start:
            ends = (x(start), y(start * one.gbytes_per_second)), (x(knee), y(knee * one.gbytes_per_second))
            parts += [line(*ends[0], *ends[1], "roof"), _name_slope(one, *ends)]
            lines += _along(*ends)
    for roof, at in zip(roofs, knees, strict=True):
        ceiling = y(roof.gmacs_per_second)
        parts.append(line(x(at), ceiling, frame.right, ceiling, "roof"))
        lines.append(Box(x(at), ceiling - 1, frame.right, ceiling + 1))
        words = roof.name + (f", {_plain(roof.gmacs_per_second)} GMAC/s" if width > NARROW else "")
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


def _name_slope(slope: Slope, begin: tuple[float, float], end: tuple[float, float]) -> Markup:
    """Its words along it, where it is long enough for them."""
    words = f"{slope.name}, {_plain(slope.gbytes_per_second)} GB/s"
    if math.dist(begin, end) < 0.9 * LETTER * len(words) + 12:
        return Markup()
    angle = math.degrees(math.atan2(end[1] - begin[1], end[0] - begin[0]))
    return text(
        10, -4, words, "roof-name", transform=f"translate({shown(begin[0])} {shown(begin[1])}) rotate({angle:.2f})"
    )


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
