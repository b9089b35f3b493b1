"""Bars beside numbers."""

from markupsafe import Markup

from mlites.report.plots.svg import element, line


def bar(share: float, class_: str = "") -> Markup:
    """A bar of a fraction of its box; decoration beside a number that says the same."""
    fill = element("rect", width=max(min(share, 1.0), 0.0) * 100, height=6, rx=1, class_=f"fill {class_}".strip())
    shape = element("rect", width=100, height=6, rx=1, class_="trough") + fill
    start = Markup('<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">')
    return start + shape + Markup("</svg>")


def bullet(value: float, interval: tuple[float, float] | None, limit: float, least: bool) -> Markup:
    """A value with its interval beside a limit; decoration beside numbers that say the same.

    Args:
        value: in the unit of the limit.
        interval: None where the value is exact.
        limit: the allowed side is shaded.
        least: the limit is a lower one.
    """
    low, high = interval or (value, value)
    start, end = min(0.0, low), max(high, limit * 1.25) * 1.05 or 1.0
    places = [4 + 112 * (one - start) / (end - start) for one in (value, low, high, limit)]
    at, left, right, wall = (max(min(place, 118.0), 2.0) for place in places)
    beyond = value < limit if least else value > limit
    shape = [
        element("rect", x=0, y=0, width=120, height=16, class_="trough"),
        element("rect", x=wall if least else 0, y=0, width=120 - wall if least else wall, height=16, class_="allowed"),
        line(wall, 0, wall, 16, "limit"),
        *([line(left, 8, right, 8, "interval")] if interval else []),
        element("circle", cx=at, cy=8, r=3.5, class_="wrong" if beyond else "right"),
    ]
    opening = Markup('<svg class="bullet" viewBox="0 0 120 16" aria-hidden="true">')
    return opening + Markup().join(shape) + Markup("</svg>")
