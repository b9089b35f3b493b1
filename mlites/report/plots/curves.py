"""Curves of a training: validation accuracy, and the losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import Axis, linear_axis
from mlites.report.plots.svg import element, line, shown, svg, text


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
    places = " ".join(f"{shown(x(epoch))},{shown(y(value))}" for epoch, value in pairs)
    end = element("circle", cx=x(pairs[-1][0]), cy=y(pairs[-1][1]), r=2.5, class_=f"end {curve.class_}")
    return element("polyline", element("title", curve.name), points=places, class_=f"curve {curve.class_}") + end
