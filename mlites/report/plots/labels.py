"""Names beside the points of a plot, clear of each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from markupsafe import Markup

from mlites.report.plots.svg import line, shorten, text

LETTER = 6.7  # average advance of a 12 px sans-serif letter, generous
RANK = {"selected": 0, "baseline": 1, "front": 2, "other": 3}  # who is named first, while there is room

Kind = Literal["baseline", "selected", "front", "other"]


class Named(Protocol):
    """A point that can be labelled."""

    @property
    def number(self) -> int:
        """Of its row in the table."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def kind(self) -> Kind:
        """How it stands among the others."""


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


def place_label(
    point: Named, extent: Box, taken: Sequence[Box], lines: Sequence[Box], frame: Box, letters: int
) -> tuple[Markup, Box] | None:
    """Write the name where it fits beside the bubble, clear of lines if possible, else its row's number, else nothing.

    Args:
        point: what is named.
        extent: of what is drawn of it.
        taken: places that no label may touch.
        lines: places that a label avoids where it can.
        frame: that it stays in.
        letters: after which a name is cut.

    Returns:
        The label and its place.
    """
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
