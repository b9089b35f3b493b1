"""Bars beside numbers."""

from markupsafe import Markup

from mlites.report.plots.svg import element


def bar(share: float, class_: str = "") -> Markup:
    """A bar of a fraction of its box; decoration beside a number that says the same."""
    fill = element("rect", width=max(min(share, 1.0), 0.0) * 100, height=6, rx=1, class_=f"fill {class_}".strip())
    shape = element("rect", width=100, height=6, rx=1, class_="trough") + fill
    start = Markup('<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">')
    return start + shape + Markup("</svg>")
