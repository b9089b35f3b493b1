"""Scales from data to pixels, with round numbers as ticks, and the grid that they draw."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from mlites.report.plots.svg import line, text


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


@dataclass(frozen=True)
class Frame:
    """The edges of a plot's grid in pixels."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Scale:
    """An axis as it is drawn: its name and its ticks in words."""

    axis: Axis
    name: str
    word: Callable[[float], str]


def grid(frame: Frame, x: Scale, y: Scale) -> Markup:
    """Lines at the ticks with their words, and below the names of both axes."""
    parts = []
    for tick in y.axis.ticks:
        parts.append(line(frame.left, y.axis(tick), frame.right, y.axis(tick), "grid"))
        parts.append(text(frame.left - 8, y.axis(tick) + 4, y.word(tick), "tick", "end"))
    for tick in x.axis.ticks:
        parts.append(line(x.axis(tick), frame.top, x.axis(tick), frame.bottom, "grid"))
        parts.append(text(x.axis(tick), frame.bottom + 17, x.word(tick), "tick", "middle"))
    parts.append(line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    parts.append(text(frame.right, frame.bottom + 37, x.name, "name", "end"))
    parts.append(text(frame.left, frame.bottom + 37, y.name, "name"))
    return Markup().join(parts)
