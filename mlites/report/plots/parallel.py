"""Trade-offs: every axis upright, better always up, each model a line across all of them.

Source: Inselberg (1985), "The Plane with Parallel Coordinates".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import Axis, linear_axis, log_axis
from mlites.report.plots.labels import LETTER, RANK, Kind
from mlites.report.plots.svg import element, line, shorten, shown, svg, text

LINE_HEIGHT = 15.0  # of a name beside the plot
NARROW = 400.0  # pixels in which names leave too little room


@dataclass(frozen=True)
class Trait:
    """One axis: larger is better.

    Attributes:
        name: above the axis.
        word: a value in words.
        values: of each model, None where unknown.
        logarithmic: equal ratios are equal distances.
    """

    name: str
    word: Callable[[float], str]
    values: Sequence[float | None]
    logarithmic: bool = True


@dataclass(frozen=True)
class Strand:
    """A model."""

    number: int  # its row in the table
    name: str
    kind: Kind
    hint: str


def parallel_plot(strands: Sequence[Strand], traits: Sequence[Trait], width: float, height: float) -> Markup:
    """One line a model; where it is not known on an axis, its line has a gap.

    Args:
        strands: the models, the baseline first.
        traits: at least two axes.
        width: of the view box, in the pixels that the page shows it in.
        height: the same.
    """
    labels = [_label(one, width) for one in strands]
    left, right = 34.0 if width > NARROW else 14.0, width - 16 - LETTER * max(map(len, labels))
    top, bottom = 44.0, height - 24
    step = (right - left) / (len(traits) - 1)
    places = [left + index * step for index in range(len(traits))]
    axes = [_axis(one, bottom, top) for one in traits]
    parts = []
    for index, (trait, place) in enumerate(zip(traits, places, strict=True)):
        values = [value for value in trait.values if value is not None]
        parts.append(line(place, top - 6, place, bottom + 6, "axis"))
        at, anchor = (place, "middle") if index else (max(place - 24, 0.0), "start")
        parts.append(text(at, 14, trait.name, "panel", anchor))
        for value, down in ((max(values), top - 12), (min(values), bottom + 20)) if values else ():
            parts.append(text(at, down, trait.word(value), "tick", anchor))
    order = sorted(range(len(strands)), key=lambda index: (-RANK[strands[index].kind], -index))
    ends: list[tuple[int, float]] = []
    for index in order:  # the chosen one last, on top
        heights = [
            None if (known := trait.values[index]) is None else axis(known)
            for trait, axis in zip(traits, axes, strict=True)
        ]
        parts.append(_strand(strands[index], places, heights))
        if (last := next((down for down in reversed(heights) if down is not None), None)) is not None:
            ends.append((index, last))
    for index, down, end in _spread(ends, strands, 8.0, height - 6):
        kind = strands[index].kind
        parts.append(line(right + 2, end, right + 9, down, "leader"))
        parts.append(text(right + 12, down + 4, labels[index], f"name {kind}"))
    return svg(width, height, _describe(strands, traits), *parts)


def _label(strand: Strand, width: float) -> str:
    """Its name, or in a narrow plot its row's number, which takes less from the axes."""
    if width > NARROW:
        return shorten(strand.name, int(width / 42))
    return "base" if strand.kind == "baseline" else str(strand.number)


def _axis(trait: Trait, bottom: float, top: float) -> Axis:
    known = [value for value in trait.values if value is not None] or [1.0]
    low, high = min(known), max(known)
    if high - low <= 1e-9 * abs(high):
        return Axis(lambda _: (top + bottom) / 2, [])
    scale = log_axis if trait.logarithmic and low > 0 else linear_axis
    return scale(low, high, bottom, top, 2)


def _strand(strand: Strand, places: Sequence[float], heights: Sequence[float | None]) -> Markup:
    pieces: list[list[str]] = [[]]
    dots = []
    for across, down in zip(places, heights, strict=True):
        if down is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{shown(across)},{shown(down)}")
            dots.append(element("circle", cx=across, cy=down, r=2.5, class_=f"dot {strand.kind}"))
    lines = [
        element("polyline", points=" ".join(piece), class_=f"strand {strand.kind}")
        for piece in pieces
        if len(piece) > 1
    ]
    return element("g", element("title", strand.hint), *lines, *dots)


def _spread(
    ends: Sequence[tuple[int, float]], strands: Sequence[Strand], top: float, bottom: float
) -> list[tuple[int, float, float]]:
    """Places for names beside the last axis, clear of each other; where room lacks, the least go unnamed.

    Returns:
        Index of the strand, its name's place, and where its line ends.
    """
    room = int((bottom - top) / LINE_HEIGHT)
    kept = sorted(ends, key=lambda end: (RANK[strands[end[0]].kind], end[0]))[:room]
    kept.sort(key=lambda end: (end[1], end[0]))
    downs: list[float] = []
    for _, end in kept:
        downs.append(max(end, downs[-1] + LINE_HEIGHT if downs else top))
    limit = bottom
    for index in reversed(range(len(downs))):  # pushed below the edge: back up
        downs[index] = min(downs[index], limit)
        limit = downs[index] - LINE_HEIGHT
    return [(index, down, end) for (index, end), down in zip(kept, downs, strict=True)]


def _describe(strands: Sequence[Strand], traits: Sequence[Trait]) -> str:
    best = next((one for one in strands if one.kind == "selected"), None)
    words = f"{len(strands) - 1} candidates and the baseline by {', '.join(one.name for one in traits)}."
    return f"{words} Selected: {best.hint}" if best else words
