"""Reliability: how often a model is right where it says how sure it is.

Source: Guo et al. (2017), figure 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.axes import Frame, Scale, grid, linear_axis
from mlites.report.plots.svg import element, line, shown, svg

SIDE = 320.0
LARGEST, SMALLEST = 9.0, 2.0  # radius of a bin's dot, whose area is its rows'


@dataclass(frozen=True)
class Reliability:
    """A model's answers in bins of confidence.

    Attributes:
        name: of the model.
        class_: ``first`` or ``second`` of the plot's curves.
        bins: rows, mean confidence and accuracy of each.
    """

    name: str
    class_: str
    bins: Sequence[tuple[int, float, float]]


def calibration_plot(models: Sequence[Reliability]) -> Markup:
    """On the diagonal a model is as often right as it is sure; below it, it is too sure of itself."""
    frame = Frame(44.0, SIDE - 20, 10.0, SIDE - 46)
    x, y = linear_axis(0, 1, frame.left, frame.right, 5), linear_axis(0, 1, frame.bottom, frame.top, 5)
    parts = [grid(frame, Scale(x, "confidence →", _percent), Scale(y, "↑ accuracy", _percent))]
    parts.append(line(x(0), y(0), x(1), y(1), "diagonal"))
    largest = max(rows for model in models for rows, _, _ in model.bins)
    for model in models:
        places = " ".join(f"{shown(x(confidence))},{shown(y(accuracy))}" for _, confidence, accuracy in model.bins)
        parts.append(element("polyline", points=places, class_=f"curve {model.class_}"))
        for rows, confidence, accuracy in model.bins:
            radius = max(LARGEST * (rows / largest) ** 0.5, SMALLEST)
            hint = f"{model.name}: {accuracy:.1%} of {rows} rows right, {confidence:.1%} sure"
            dot = element("circle", cx=x(confidence), cy=y(accuracy), r=radius, class_=f"end {model.class_}")
            parts.append(element("g", element("title", hint), dot))
    named = " and ".join(model.name for model in models)
    return svg(SIDE, SIDE, f"Accuracy against confidence of {named}", *parts, class_="plot square")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
