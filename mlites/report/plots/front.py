"""The front: accuracy against speed-up, each model a bubble with the area of its file."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from mlites.report.plots.axes import Axis, Frame, Scale, grid, linear_axis, log_axis
from mlites.report.plots.labels import LETTER, RANK, Box, Kind, place_label
from mlites.report.plots.marks import mark, reach
from mlites.report.plots.svg import TIMES, element, line, shown, svg, text

LARGEST_BUBBLE = 19.0
SMALLEST_BUBBLE = 4.0


@dataclass(frozen=True)
class Point:
    """A model in the accuracy-latency-size plot."""

    number: int  # its row in the table
    name: str
    speedup: float
    interval: tuple[float, float] | None
    accuracy: float
    size_bytes: int
    kind: Kind
    hint: str


def front_plot(
    points: Sequence[Point], width: float, height: float, least_accuracy: float | None, least_speedup: float | None
) -> Markup:
    """Accuracy against speed-up, each model a bubble with the area of its file, the best of them joined.

    Args:
        points: the baseline first; names may be long, labels give way where they would collide.
        width: of the view box, in the pixels that the page shows it in.
        height: the same.
        least_accuracy: fraction that the budget asks for, drawn as a line.
        least_speedup: ratio that the budget asks for, drawn as a line.
    """
    left, right, top, bottom = 52.0, width - 12, 14.0, height - 46
    speeds = [edge for point in points for edge in (point.interval or (point.speedup, point.speedup))]
    speeds += [point.speedup for point in points] + ([least_speedup] if least_speedup else [])
    widen = max((max(speeds) / min(speeds)) ** 0.09, 1.06)
    x = log_axis(min(speeds) / widen, max(speeds) * widen, left, right, int(width / 70))
    accuracies = [point.accuracy for point in points] + ([] if least_accuracy is None else [least_accuracy])
    y = accuracy_axis(accuracies, top, bottom, int(height / 55))
    across = Scale(x, "faster than the baseline →", lambda tick: f"{tick:g}{TIMES}")
    upwards = Scale(y, "↑ accuracy", lambda tick: f"{100 * tick:.4g}%")
    parts = [grid(Frame(left, right, top, bottom), across, upwards)]
    largest = max(point.size_bytes for point in points)
    radii = [max(LARGEST_BUBBLE * math.sqrt(point.size_bytes / largest), SMALLEST_BUBBLE) for point in points]
    extents = [_extent(point, radius, x, y) for point, radius in zip(points, radii, strict=True)]
    budget, words, lines = _budget(x, y, (left, right, top, bottom), least_accuracy, least_speedup, extents)
    front, front_lines = _staircase(points, x, y)
    parts += [budget, front]
    boxes, lines = [*extents, *words], [*lines, *front_lines]
    order = sorted(range(len(points)), key=lambda index: (-radii[index], index))
    for index in order:  # small ones last, on top
        point = points[index]
        parts.append(_bubble(point, (x(point.speedup), y(point.accuracy)), radii[index], x))
    for index in sorted(order, key=lambda one: (RANK[points[one].kind], points[one].number)):
        point = points[index]
        label = place_label(point, extents[index], boxes, lines, Box(left + 2, top, right, bottom - 2), int(width / 22))
        if label:
            parts.append(label[0])
            boxes.append(label[1])
    return svg(width, height, _front_label(points), *parts)


def accuracy_axis(accuracies: Sequence[float], top: float, bottom: float, count: int) -> Axis:
    """Linear, but logarithmic in the error where one model's error dwarfs the others', so that the good ones spread."""
    low, high = min(accuracies), max(accuracies)
    smallest = max(1 - high, 5e-4)
    if (1 - low) / smallest > 8 and high - low > 0.05:
        errors = log_axis(smallest / 1.35, min((1 - low) * 1.25, 1.0), top, bottom, count)
        return Axis(lambda accuracy: errors(1 - accuracy), [1 - error for error in errors.ticks])
    margin = max((high - low) * 0.12, 0.002)
    ticks = linear_axis(low - margin, min(high + margin, 1.004), bottom, top, count)
    return Axis(ticks.place, [tick for tick in ticks.ticks if tick <= 1])


def _budget(
    x: Axis,
    y: Axis,
    frame: tuple[float, float, float, float],
    accuracy: float | None,
    speedup: float | None,
    taken: Sequence[Box],
) -> tuple[Markup, list[Box], list[Box]]:
    """The allowed region; the places of its words; its two lines."""
    left, right, top, bottom = frame
    floor = bottom if accuracy is None else y(accuracy)
    wall = left if speedup is None else x(speedup)
    if accuracy is None and speedup is None:
        return Markup(), [], []
    parts = [element("rect", x=wall, y=top, width=right - wall, height=max(floor - top, 0.0), class_="allowed")]
    boxes, lines = [], []
    if accuracy is not None:
        words = f"budget: ≥ {100 * accuracy:.4g}%"
        wide = LETTER * len(words) + 8
        places = [Box(start, up, start + wide, up + 18) for up in (floor, floor - 18) for start in (right - wide, wall)]
        parts.append(line(wall, floor, right, floor, "limit"))
        for box in [one for one in places if not any(one.overlaps(other) for other in taken)][:1]:
            parts.append(text(box.left + 4, box.top + 13, words, "limit-name"))
            boxes.append(box)
        lines.append(Box(wall, floor - 1, right, floor + 1))
    if speedup is not None:
        words = f"≥ {speedup:g}{TIMES}"
        wide = LETTER * len(words) + 8
        start = wall if wall + wide <= right else wall - wide
        parts += [line(wall, top, wall, floor, "limit"), text(start + 5, top + 12, words, "limit-name")]
        boxes.append(Box(start, top, start + wide, top + 16))
        lines.append(Box(wall - 1, top, wall + 1, floor))
    return Markup().join(parts), boxes, lines


def _staircase(points: Sequence[Point], x: Axis, y: Axis) -> tuple[Markup, list[Box]]:
    """What is within reach: at least so fast, this accurate."""
    best = [
        one
        for one in points
        if not any(
            other.speedup >= one.speedup
            and other.accuracy >= one.accuracy
            and (other.speedup, other.accuracy) != (one.speedup, one.accuracy)
            for other in points
        )
    ]
    places = [(x(point.speedup), y(point.accuracy)) for point in sorted(best, key=lambda one: one.speedup)]
    path = f"M{shown(places[0][0])},{shown(places[0][1])}"
    lines = []
    for (across, down), (next_across, next_down) in pairwise(places):
        path += f" V{shown(next_down)} H{shown(next_across)}"
        lines.append(Box(across - 1, down, across + 1, next_down))
        lines.append(Box(across, next_down - 1, next_across, next_down + 1))
    return element("path", d=path, class_="front-line"), lines


def _extent(point: Point, radius: float, x: Axis, y: Axis) -> Box:
    across, down, edge = x(point.speedup), y(point.accuracy), reach(point.kind, radius)
    low, high = point.interval or (point.speedup, point.speedup)
    return Box(min(across - edge, x(low)), down - edge, max(across + edge, x(high)), down + edge)


def _bubble(point: Point, centre: tuple[float, float], radius: float, x: Axis) -> Markup:
    across, down = centre
    parts = [element("title", point.hint)]
    if point.interval:
        parts.append(line(x(point.interval[0]), down, x(point.interval[1]), down, "interval"))
    parts.append(mark(point.kind, across, down, radius))
    return element("g", *parts)


def _front_label(points: Sequence[Point]) -> str:
    best = next((point for point in points if point.kind == "selected"), None)
    words = f"Accuracy against speed-up of {len(points) - 1} candidates and the baseline."
    return f"{words} Selected: {best.hint}" if best else words


def bubble_key(sizes: Iterable[int], largest: int, words: Callable[[int], str]) -> Markup:
    """Bubbles with their sizes, for the legend."""
    start = Markup('<span class="key-item"><svg class="key" width="{0:.0f}" height="{0:.0f}" viewBox="{1}"{2}>')
    parts = []
    for size in sizes:
        radius = max(LARGEST_BUBBLE * math.sqrt(size / largest), SMALLEST_BUBBLE)
        edge = 2 * radius + 2
        parts.append(start.format(edge, f"0 0 {edge:.2f} {edge:.2f}", Markup(' aria-hidden="true"')))
        parts.append(element("circle", cx=edge / 2, cy=edge / 2, r=radius, class_="bubble other"))
        parts.append(Markup("</svg>{}</span>").format(words(size)))
    return Markup().join(parts)
