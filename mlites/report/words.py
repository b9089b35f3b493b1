"""Numbers with their units, as people read them."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from mlites.report.plots.svg import TIMES, shorten

NOTHING = "\N{EN DASH}"
_PERCENTAGE = re.compile(r"\b(\d+)%")


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(decimals, 9)}f}"


def scientific(value: float) -> str:
    """A number of any magnitude."""
    return f"{value:.1e}"


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction of the whole."""
    return f"{100 * fraction:.{digits}f}%"


def count(number: float) -> str:
    """A count in thousands, millions or billions."""
    for unit in ("", " k", " M"):
        if abs(number) < 1000:
            return f"{number:g}" if not unit else f"{significant(number)}{unit}"
        number /= 1000
    return f"{significant(number)} G"


def change(before: float, after: float) -> str:
    """By which part a figure grew or fell."""
    if before == after:
        return "unchanged"
    if not before:
        return ""
    part = after / before - 1
    return f"{part:+.1%}".replace("-", "\N{MINUS SIGN}") if abs(part) < 10 else f"{significant(after / before)}{TIMES}"


def milliseconds(value: float) -> str:
    """From a microsecond up."""
    return f"{significant(value)} ms" if value >= 1 else f"{significant(1000 * value)} µs"


def times(ratio: float) -> str:
    """A ratio."""
    return f"{significant(ratio)}{TIMES}"


def rate(rows_per_second: float) -> str:
    """Throughput."""
    return f"{count(float(significant(rows_per_second).replace(',', '')))} rows/s"


def energy(millijoules: float) -> str:
    """From a microjoule up."""
    return f"{significant(millijoules)} mJ" if millijoules >= 1 else f"{significant(1000 * millijoules)} µJ"


def quantity(value: float, unit: str) -> str:
    """A figure of the budget in its own unit."""
    digits = significant(value, 4)
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    digits = digits.replace("-", "\N{MINUS SIGN}")
    return f"{digits}{TIMES}" if unit == "x" else f"{digits} {unit}"


def size(count: float) -> str:
    """Bytes in the binary unit that leaves a number below 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:g} {unit}" if count == int(count) else f"{significant(count)} {unit}"
        count /= 1024
    return f"{significant(count)} GiB"


def duration(seconds: float) -> str:
    """Wall time."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def points(drop: float) -> str:
    """A loss of accuracy as a signed difference."""
    return "±0 points" if abs(drop) < 0.005 else f"{-drop:+.2f} points".replace("-", "\N{MINUS SIGN}")


def smaller(ratio: float) -> str:
    """A ratio of sizes as the part that is gone."""
    return f"{1 - 1 / ratio:.0%} smaller" if ratio >= 1 else f"{1 / ratio - 1:.0%} larger"


def brief(value: Any) -> str:
    """Any observed value in at most 160 characters."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return significant(value, 4)
    words = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return shorten(words, 160)


def merged(lines: Iterable[str]) -> list[str]:
    """Each line once; those that differ only in one percentage as one line with its range.

    >>> merged(["others took 68% of it", "no VNNI", "others took 33% of it", "no VNNI"])
    ['others took 33% to 68% of it', 'no VNNI']
    """
    found: dict[str, list[int]] = {}
    for line in lines:
        numbers = _PERCENTAGE.findall(line)
        kind, number = (_PERCENTAGE.sub("\0", line), [int(numbers[0])]) if len(numbers) == 1 else (line, [])
        found.setdefault(kind, []).extend(number)
    return [kind.replace("\0", _range(values)) if values else kind for kind, values in found.items()]


def _range(percentages: list[int]) -> str:
    least, most = min(percentages), max(percentages)
    return f"{least}%" if least == most else f"{least}% to {most}%"
