"""Plots as inline SVG whose colours and fonts come from the page's style sheet, so that they follow light and dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

TIMES = "\N{MULTIPLICATION SIGN}"
LETTER = 6.7  # average advance of a 12 px sans-serif letter, generous
LARGEST_BUBBLE = 19.0
SMALLEST_BUBBLE = 4.0
COUNTED_CLASSES = 12  # with more, the cells of a confusion matrix are too small for numbers
NAMED_CLASSES = 24
MATRIX_WIDTH = 320.0


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One SVG element; text and attribute values are escaped, ``font_size`` becomes ``font-size``."""
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    inside = Markup().join(Markup(' {}="{}"').format(key, _shown(value)) for key, value in pairs)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, inside, Markup().join(children))


def _shown(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def svg(width: float, height: float, label: str, *children: str, class_: str = "plot") -> Markup:
    """A picture that scales with its box and reads as one image to a screen reader."""
    box = f"0 0 {_shown(float(width))} {_shown(float(height))}"
    open_tag = Markup('<svg class="{}" viewBox="{}" role="img" aria-label="{}">').format(class_, box, label)
    return open_tag + Markup().join(children) + Markup("</svg>")


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None, **more: object) -> Markup:
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def shorten(content: str, letters: int) -> str:
    """At most so many letters, the last an ellipsis where something was cut."""
    return content if len(content) <= letters else content[: max(letters - 1, 1)].rstrip() + "…"


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels with its ticks."""

    place: Callable[[float], float]
    ticks: list[float]

    def __call__(self, value: float) -> float:
        return self.place(value)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers whose logarithms lie about evenly between low and high, both above 0."""
    if high / low < 2.5:
        return linear_ticks(low, high, count)
    ladders = [(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), (1.0, 2.0, 3.0, 5.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for ladder in ladders:
        ticks = [step * 10.0**power for power in powers for step in ladder if low <= step * 10.0**power <= high]
        if len(ticks) <= count:
            return ticks
    return ticks[:: math.ceil(len(ticks) / count)]


def linear_axis(low: float, high: float, start: float, end: float, count: int) -> Axis:
    """Low lands on start and high on end, in pixels."""
    slope = (end - start) / (high - low)
    return Axis(lambda value: start + (value - low) * slope, linear_ticks(low, high, count))


def log_axis(low: float, high: float, start: float, end: float, count: int) -> Axis:
    """As `linear_axis`, in equal ratios; values at or below 0 land where low does."""
    slope = (end - start) / math.log(high / low)
    return Axis(lambda value: start + math.log(max(value, low) / low) * slope, log_ticks(low, high, count))


# ---- the front -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A model in the accuracy-latency-size plot."""

    number: int  # its row in the table
    name: str
    speedup: float
    interval: tuple[float, float] | None
    accuracy: float
    size_bytes: int
    kind: Literal["baseline", "selected", "front", "other"]
    hint: str


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


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
    parts = [_frame(x, y, left, right, top, bottom)]
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
    rank = {"selected": 0, "baseline": 1, "front": 2, "other": 3}
    for index in sorted(order, key=lambda one: (rank[points[one].kind], points[one].number)):
        point = points[index]
        label = _label(point, extents[index], boxes, lines, Box(left + 2, top, right, bottom - 2), int(width / 22))
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


def _frame(x: Axis, y: Axis, left: float, right: float, top: float, bottom: float) -> Markup:
    parts = []
    for tick in y.ticks:
        parts.append(line(left, y(tick), right, y(tick), "grid"))
        parts.append(text(left - 8, y(tick) + 4, f"{100 * tick:.4g}%", "tick", "end"))
    for tick in x.ticks:
        parts.append(line(x(tick), top, x(tick), bottom, "grid"))
        parts.append(text(x(tick), bottom + 17, f"{tick:g}{TIMES}", "tick", "middle"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text(right, bottom + 37, "faster than the baseline →", "name", "end"))
    parts.append(text(left, bottom + 37, "↑ accuracy", "name"))
    return Markup().join(parts)


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
    path = f"M{_shown(places[0][0])},{_shown(places[0][1])}"
    lines = []
    for (across, down), (next_across, next_down) in pairwise(places):
        path += f" V{_shown(next_down)} H{_shown(next_across)}"
        lines.append(Box(across - 1, down, across + 1, next_down))
        lines.append(Box(across, next_down - 1, next_across, next_down + 1))
    return element("path", d=path, class_="front-line"), lines


def _edge(point: Point, radius: float) -> float:
    """From the centre of what is drawn to its outermost point."""
    if point.kind == "baseline":
        return radius * math.sqrt(math.pi / 2)  # a diamond of the circle's area
    return radius + (4 if point.kind == "selected" else 0)


def _extent(point: Point, radius: float, x: Axis, y: Axis) -> Box:
    across, down, edge = x(point.speedup), y(point.accuracy), _edge(point, radius)
    low, high = point.interval or (point.speedup, point.speedup)
    return Box(min(across - edge, x(low)), down - edge, max(across + edge, x(high)), down + edge)


def _bubble(point: Point, centre: tuple[float, float], radius: float, x: Axis) -> Markup:
    across, down = centre
    parts = [element("title", point.hint)]
    if point.interval:
        parts.append(line(x(point.interval[0]), down, x(point.interval[1]), down, "interval"))
    if point.kind == "selected":
        parts.append(element("circle", cx=across, cy=down, r=radius + 4, class_="ring"))
    if point.kind == "baseline":
        edge = _edge(point, radius)
        corners = [(across, down - edge), (across + edge, down), (across, down + edge), (across - edge, down)]
        places = " ".join(f"{x_place:.2f},{y_place:.2f}" for x_place, y_place in corners)
        parts.append(element("polygon", points=places, class_="bubble baseline"))
    else:
        parts.append(element("circle", cx=across, cy=down, r=radius, class_=f"bubble {point.kind}"))
    return element("g", *parts)


def _label(
    point: Point, extent: Box, taken: Sequence[Box], lines: Sequence[Box], frame: Box, letters: int
) -> tuple[Markup, Box] | None:
    """The name where it fits beside the bubble, clear of lines if possible, else its row's number, else nothing."""
    across, down = (extent.left + extent.right) / 2, (extent.top + extent.bottom) / 2
    wide_reach, high_reach = (extent.right - extent.left) / 2, (extent.bottom - extent.top) / 2
    name, gaps = shorten(point.name, letters), (3.0, 10.0, 22.0, 38.0)
    near_gaps = gaps[:2] if point.kind == "other" else gaps  # a lesser one does not reach far for its name
    choices: list[tuple[str, Sequence[Box], Sequence[float]]] = []
    if name == point.name or point.kind in ("baseline", "selected"):  # of half a name the number tells more
        choices = [(name, [*taken, *lines], near_gaps), (name, taken, near_gaps)]
    if point.kind != "baseline":
        choices += [(str(point.number), [*taken, *lines], gaps), (str(point.number), taken, gaps)]
    for words, obstacles, allowed in choices:
        wide = LETTER * len(words) * (1.08 if point.kind == "selected" else 1) + 2
        for gap in allowed:
            for right, below in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
                slant = 0.75 if right and below else 1.0
                near = across + right * slant * (wide_reach + gap)
                middle = down + below * slant * (high_reach + gap + (0 if right else 5))
                start = near - (0 if right > 0 else wide if right < 0 else wide / 2)
                box = Box(start, middle - 7, start + wide, middle + 7)
                inside = box.left >= frame.left and box.right <= frame.right
                inside = inside and box.top >= frame.top and box.bottom <= frame.bottom
                if inside and not any(box.overlaps(other) for other in obstacles):
                    anchor = "start" if right > 0 else "end" if right < 0 else "middle"
                    drawn = text(near, middle + 4, words, f"name {point.kind}", anchor)
                    if gap > 10:
                        share = high_reach / math.hypot(near - across, middle - down)
                        begin = (across + (near - across) * share, down + (middle - down) * share)
                        drawn = line(*begin, near - right * 1.5, middle - below * (0 if right else 7), "leader") + drawn
                    return drawn, box
    return None


def _front_label(points: Sequence[Point]) -> str:
    best = next((point for point in points if point.kind == "selected"), None)
    words = f"Accuracy against speed-up of {len(points) - 1} candidates and the baseline."
    return f"{words} Selected: {best.hint}" if best else words


# ---- training curves ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One line of a training plot; None where an epoch has no value."""

    name: str
    values: Sequence[float | None]
    class_: str


def curves_plot(title: str, epochs: Sequence[int], accuracy: Curve, losses: Sequence[Curve]) -> Markup:
    """Two small panels side by side: validation accuracy, and the losses."""
    width, height, top, bottom = 300.0, 148.0, 26.0, 126.0
    panels: list[tuple[str, Sequence[Curve], float, float, bool]] = [
        ("validation accuracy, %", [accuracy], 28.0, 142.0, True),
        ("loss", losses, 182.0, 296.0, False),
    ]
    parts = []
    for name, curves, left, right, percent in panels:
        values = [value for curve in curves for value in curve.values if value is not None and math.isfinite(value)]
        parts.append(text(left, 12, name, "panel"))
        if not values:
            parts.append(text((left + right) / 2, (top + bottom) / 2, "not recorded", "tick", "middle"))
            continue
        low, high = min(values), max(values)
        margin = max((high - low) * 0.06, abs(high) * 1e-3, 1e-6)
        y = linear_axis(low - margin, high + margin, bottom, top, 4)
        span = max(epochs) - min(epochs) or 1
        x = linear_axis(min(epochs), min(epochs) + span, left, right, 3)
        for tick in y.ticks:
            parts.append(line(left, y(tick), right, y(tick), "grid"))
            words = f"{100 * tick:.4g}" if percent else f"{tick:.3g}"
            parts.append(text(left - 5, y(tick) + 3.5, words, "tick", "end"))
        parts.append(text(left, bottom + 15, str(min(epochs)), "tick", "middle"))
        if len(epochs) > 1:
            parts.append(text(right, bottom + 15, str(max(epochs)), "tick", "end"))
        parts.append(text((left + right) / 2, bottom + 15, "epoch", "tick", "middle"))
        for curve in curves:
            parts.append(_polyline(curve, epochs, x, y))
    return svg(width, height, title, *parts, class_="plot small")


def _polyline(curve: Curve, epochs: Sequence[int], x: Axis, y: Axis) -> Markup:
    pairs = [(e, v) for e, v in zip(epochs, curve.values, strict=True) if v is not None and math.isfinite(v)]
    if not pairs:
        return Markup()
    places = " ".join(f"{_shown(x(epoch))},{_shown(y(value))}" for epoch, value in pairs)
    end = element("circle", cx=x(pairs[-1][0]), cy=y(pairs[-1][1]), r=2.5, class_=f"end {curve.class_}")
    return element("polyline", element("title", curve.name), points=places, class_=f"curve {curve.class_}") + end


# ---- confusion matrix -----------------------------------------------------------------------------------------------


def confusion_plot(title: str, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Rows are the true classes, columns the predicted; shade is the share of the row.

    With many classes names and numbers would be too small: axes count instead, and the page lists the worst pairs.
    """
    size, many = len(counts), len(counts) > NAMED_CLASSES
    letters = 2 if many else min(max(len(name) for name in classes), 13)
    margin = 20 + (22 if many else 5.6 * letters + 6)
    cell = (MATRIX_WIDTH - margin - 2) / size
    font = 9.5 if many else min(10.0, cell * 0.95)
    top = margin if not many and letters > 3 else 36.0
    height = top + cell * size + 2
    parts = [element("rect", x=margin, y=top, width=cell * size, height=cell * size, class_="matrix")]
    parts.append(text(margin + cell * size / 2, 11, "predicted", "panel", "middle"))
    middle = top + cell * size / 2
    parts.append(text(11, middle, "true", "panel", "middle", transform=f"rotate(-90 11 {_shown(middle)})"))
    for row, line_counts in enumerate(counts):
        total = sum(line_counts)
        for column, count in enumerate(line_counts):
            if count:
                parts.append(_cell(row, column, count, total, (margin, top, cell), size, classes))
    every = 1 if not many else 5 if size <= 50 else 10
    for index in range(0, size, every):
        centre = (index + 0.5) * cell
        name = str(index) if many else shorten(classes[index], letters)
        parts.append(text(margin - 4, top + centre + 3.3, name, "class", "end", font_size=font))
        if letters > 3 and not many:
            across = margin + centre + 3
            spin = f"rotate(-90 {_shown(across)} {_shown(top - 5)})"
            parts.append(text(across, top - 5, name, "class", transform=spin, font_size=font))
        else:
            parts.append(text(margin + centre, top - 5, name, "class", "middle", font_size=font))
    return svg(MATRIX_WIDTH, height, title, *parts, class_="plot square")


def _cell(
    row: int, column: int, count: int, total: int, place: tuple[float, float, float], size: int, classes: Sequence[str]
) -> Markup:
    left, top, cell = place
    share, right = count / total, row == column
    x, y = left + column * cell, top + row * cell
    edge = max(cell - min(1.6, cell * 0.16), 3.4)  # of a hundred classes, a lone mistake must still be seen
    gap = (cell - edge) / 2
    shade = f"{0.12 + 0.78 * share if right else 0.3 + 0.6 * min(share * 3, 1.0):.2f}"  # mistakes are rare
    kind = "right" if right else "wrong"
    drawn = element("rect", x=x + gap, y=y + gap, width=edge, height=edge, fill_opacity=shade, class_=kind)
    hint = element("title", f"true {classes[row]}, predicted {classes[column]}: {count} ({share:.1%})")
    if size > COUNTED_CLASSES:
        return element("g", hint, drawn)
    words = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
    font = min(cell * 0.42, (cell - 3) / (0.6 * len(words)), 12.0)
    kind = "count strong" if float(shade) > 0.55 else "count"
    number = text(x + cell / 2, y + cell / 2 + font * 0.36, words, kind, "middle", font_size=font)
    return element("g", hint, drawn, number)


# ---- bars -----------------------------------------------------------------------------------------------------------


def bar(share: float, class_: str = "") -> Markup:
    """A bar of a fraction of its box; decoration beside a number that says the same."""
    fill = element("rect", width=max(min(share, 1.0), 0.0) * 100, height=6, rx=1, class_=f"fill {class_}".strip())
    shape = element("rect", width=100, height=6, rx=1, class_="trough") + fill
    start = Markup('<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">')
    return start + shape + Markup("</svg>")


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
