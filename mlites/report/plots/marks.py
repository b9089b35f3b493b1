"""How a model is drawn in a plot: the baseline a diamond, others a circle, the selected one with a ring."""

import math

from markupsafe import Markup

from mlites.report.plots.labels import Kind
from mlites.report.plots.svg import element

RING = 4.0


def mark(kind: Kind, across: float, down: float, radius: float) -> Markup:
    """The shape alone; a diamond has the area of the circle."""
    if kind == "baseline":
        edge = reach(kind, radius)
        corners = [(across, down - edge), (across + edge, down), (across, down + edge), (across - edge, down)]
        places = " ".join(f"{x_place:.2f},{y_place:.2f}" for x_place, y_place in corners)
        return element("polygon", points=places, class_="bubble baseline")
    ring = element("circle", cx=across, cy=down, r=radius + RING, class_="ring") if kind == "selected" else Markup()
    return ring + element("circle", cx=across, cy=down, r=radius, class_=f"bubble {kind}")


def reach(kind: Kind, radius: float) -> float:
    """From the centre of what is drawn to its outermost point."""
    if kind == "baseline":
        return radius * math.sqrt(math.pi / 2)
    return radius + (RING if kind == "selected" else 0)
