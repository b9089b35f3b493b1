"""Values with their intervals against a limit, one below the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import linear_axis
from mlites.report.plots.labels import LETTER
from mlites.report.plots.svg import element, line, shorten, svg, text

ROW = 24.0


@dataclass(frozen=True)
class Span:
    """A named value.

    Attributes:
        name: at the left.
        value: in the unit of the axis.
        interval: None where it is exact.
        beyond: the value is on the wrong side of the limit.
        note: at the right.
        hint: in words, for those who point at it.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    beyond: bool
    note: str
    hint: str


def spans_plot(title: str, spans: Sequence[Span], limit: float | None, unit: str, width: float) -> Markup:
    """A row for each; the axis holds zero, the limit and every interval.

    Args:
        title: for those who do not see.
        spans: from top to bottom, at least one.
        limit: drawn as a line; None where there is none.
        unit: below the axis.
        width: of the view box, in the pixels that the page shows it in.
    """
    letters = int(width / 24)
    left = 14 + LETTER * max(min(len(one.name), letters) for one in spans)
    right = width - 14 - LETTER * max(len(one.note) for one in spans)
    top, bottom = 16.0, 16.0 + ROW * len(spans)
    edges = [edge for one in spans for edge in (one.value, *(one.interval or ()))]
    edges += [0.0] if limit is None else [0.0, limit]
    reach = (max(edges) - min(edges) or 1.0) * 0.05
    x = linear_axis(min(edges) - reach, max(edges) + reach, left, right, max(int((right - left) / 60), 2))
    parts = []
    for tick in x.ticks:
        parts.append(line(x(tick), top - 4, x(tick), bottom, "axis" if tick == 0 else "grid"))
        parts.append(text(x(tick), bottom + 16, f"{tick:g}".replace("-", "\N{MINUS SIGN}"), "tick", "middle"))
    parts.append(text((left + right) / 2, bottom + 34, unit, "name", "middle"))
    if limit is not None:
        parts.append(line(x(limit), top - 6, x(limit), bottom, "limit"))
        parts.append(text(x(limit), top - 7, f"budget ≤ {limit:g}", "limit-name", "middle" if x(limit) > 60 else None))
    for index, one in enumerate(spans):
        middle = top + ROW * (index + 0.5)
        kind = "wrong" if one.beyond else "right"
        mark = element("circle", cx=x(one.value), cy=middle, r=5, class_=kind)
        bar = line(x(one.interval[0]), middle, x(one.interval[1]), middle, "interval") if one.interval else Markup()
        parts.append(element("g", element("title", one.hint), bar, mark))
        parts.append(text(left - 10, middle + 4, shorten(one.name, letters), "class", "end"))
        parts.append(text(right + 10, middle + 4, one.note, "tick"))
    return svg(width, bottom + 42, title, *parts)
