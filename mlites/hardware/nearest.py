"""What the best candidate would still need, and which others have it."""

from collections.abc import Sequence
from typing import Any

from mlites.hardware.budget import Judgement, Line, figure

SHOWN = 2  # candidates named for a line

WORDS = {"accuracy drop": "accuracy", "latency p95": "latency", "peak memory": "memory"}


def find_nearest(names: Sequence[str], judgements: Sequence[Judgement], best: int) -> list[dict[str, Any]]:
    """For each line that the best candidate misses: what it would take, and the candidates nearest to that.

    Args:
        names: of the candidates.
        judgements: of each.
        best: index of the one to deploy if it only could be.

    Returns:
        For each line: ``line``, ``sentence``, and ``candidates``, each with its ``value`` and the lines it ``misses``.
    """
    found = []
    for line in judgements[best].missed:
        others = [index for index in range(len(names)) if index != best]
        same = {index: _same(judgements[index], line.name) for index in others}
        meets = [index for index in others if same[index].verdict == "pass"]
        if meets:
            near = sorted(meets, key=lambda index: (judgements[index].miss, names[index]))
        else:
            near = sorted(others, key=lambda index: (same[index].miss, names[index]))
        near = near[:SHOWN]
        named = [_name(names[index], same[index], judgements[index], line.name) for index in near]
        has = "nearest with it" if meets else "no candidate has it, nearest to it"
        which = f"{has}: {' and '.join(named)}" if named else "there is no other candidate"
        found.append(
            {
                "line": line.name,
                "sentence": f"It needs {_need(line)}; {which}.",
                "candidates": [
                    {
                        "candidate": names[index],
                        "value": same[index].value,
                        "misses": [one.name for one in judgements[index].missed],
                    }
                    for index in near
                ],
            }
        )
    return found


def _same(judgement: Judgement, name: str) -> Line:
    return next(line for line in judgement.lines if line.name == name)


def _need(line: Line) -> str:
    """What of a line is missing, in words."""
    what = WORDS.get(line.name, line.name)
    if line.value is None:
        return f"a measurement of its {what}"
    if line.verdict == "undecided":
        return f"a longer or quieter measurement of its {what}"
    if line.unit == "points":  # of accuracy
        more = "more accuracy" if line.name == "accuracy drop" else f"less {what}"
        return f"{figure(-(line.margin or 0.0))} points {more} at this size and speed"
    share = 100 * abs(line.margin or 0.0) / line.value if line.value else 100.0
    return f"{figure(float(f'{share:.2g}'))}% {'more' if line.least else 'less'} {what} at this accuracy"


def _name(name: str, line: Line, judgement: Judgement, of: str) -> str:
    value = "not measured" if line.value is None else f"{line.name} {figure(line.value)} {line.unit}"
    misses = [one.name for one in judgement.missed if one.name != of]
    return f"{name} ({value}, but misses {', '.join(misses)})" if misses else f"{name} ({value})"
