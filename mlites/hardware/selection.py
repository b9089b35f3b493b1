"""The best candidate with the reason, whether or not it meets the budget."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from mlites.errors import InputError
from mlites.files import digest_json
from mlites.hardware.budget import Judgement, judge
from mlites.hardware.pareto import pareto_front
from mlites.recipe import Budget

FORMAT = "mlites-selection/1"
RULE = "highest geometric mean of speedup and size ratio"

Document = dict[str, Any]


def select(verdicts: list[Document], budget: Budget) -> Document:
    """Choose among measured candidates.

    Within the budget the highest geometric mean of speedup and size ratio wins; candidates whose speeds the measurement
    cannot tell apart count as equally fast, so of these the smaller wins, then the more accurate. If none is within
    the budget, the one that misses it by the least wins. The same verdicts in any order give the same choice.

    Args:
        verdicts: documents of `mlites.hardware.validate`, all against the same teacher.
        budget: what a candidate must reach.

    Returns:
        The selection document (``mlites-selection/1``); its candidates stand in the order of the verdicts.

    Raises:
        InputError: no verdict, a name given twice, or different teachers.
    """
    _check(verdicts)
    judgements = [judge(verdict, budget) for verdict in verdicts]
    baseline = _median_baseline(verdicts)
    *on_front, teacher_on_front = pareto_front([*map(_merits, verdicts), (baseline["accuracy"], 1.0, 1.0)]).tolist()
    ranks = _ranks(verdicts)
    keys = [(judgement.miss, rank) for judgement, rank in zip(judgements, ranks, strict=True)]
    best = min(range(len(verdicts)), key=keys.__getitem__)
    # a wide interval may have put it among faster ones, before another that is better or equal on every axis
    while better := [
        i for i in range(len(verdicts)) if keys[i][0] <= keys[best][0] and _beats(verdicts[i], verdicts[best])
    ]:
        best = min(better, key=keys.__getitem__)
    chosen = verdicts[best]
    left_out = ("format", "provenance", "baseline")
    return {
        "format": FORMAT,
        "selected": chosen["candidate"],
        "model": chosen["model"],
        "reason": _reason(verdicts, judgements, best),
        "within_budget": judgements[best].within_budget,
        "budget": budget.model_dump(mode="json"),
        "baseline": {**baseline, "on_front": teacher_on_front},
        "candidates": [
            {
                **{key: value for key, value in verdict.items() if key not in left_out},
                "on_front": front,
                "within_budget": judgement.within_budget,
                "reasons": list(judgement.reasons),
            }
            for verdict, front, judgement in zip(verdicts, on_front, judgements, strict=True)
        ],
        "verdicts": [digest_json(verdict) for verdict in verdicts],
    }


def _check(verdicts: list[Document]) -> None:
    if not verdicts:
        raise InputError("no verdict to select from: validate at least one candidate first")
    names = [verdict["candidate"] for verdict in verdicts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"candidate {name!r} has two verdicts; give each candidate once")
    first = verdicts[0]
    for verdict in verdicts:
        if verdict["baseline"]["model"] != first["baseline"]["model"]:
            raise InputError(
                f"{first['candidate']!r} and {verdict['candidate']!r} were measured against different teachers; "
                "validate them against the same one"
            )


def _median_baseline(verdicts: Sequence[Document]) -> Document:
    """The teacher, its figures being medians over all its measurements."""
    baselines = [verdict["baseline"] for verdict in verdicts]
    return {
        **baselines[0],
        "accuracy": median(one["accuracy"] for one in baselines),
        "latency_ms": {key: median(one["latency_ms"][key] for one in baselines) for key in ("p50", "p95", "p99")},
        "size_bytes": round(median(one["size_bytes"] for one in baselines)),
        "peak_memory_bytes": round(median(one["peak_memory_bytes"] for one in baselines)),
    }


def _merits(verdict: Document) -> tuple[float, float, float]:
    """What the front is over, larger being better; the teacher of the same measurement is (its accuracy, 1, 1)."""
    return verdict["accuracy"], verdict["speedup"], verdict["size_ratio"]


def _beats(verdict: Document, other: Document) -> bool:
    pairs = list(zip(_merits(verdict), _merits(other), strict=True))
    return all(ours >= theirs for ours, theirs in pairs) and any(ours > theirs for ours, theirs in pairs)


def _ranks(verdicts: Sequence[Document]) -> list[tuple[float | str, ...]]:
    """A sort key for each candidate, the best first.

    Overlapping intervals are no order (a may overlap b and b overlap c, but a not c). So, from the fastest on,
    candidates join the class of its fastest as long as they overlap it; the first that does not opens the next class.
    Classes follow the measured speed, so what wins is never beaten on every axis by another.
    """
    by_speed = sorted(verdicts, key=lambda one: (-one["speedup"], one["candidate"]))
    leader = by_speed[0]
    class_speed: dict[str, float] = {}
    for verdict in by_speed:
        if verdict["speedup_interval"][1] < leader["speedup_interval"][0]:
            leader = verdict
        class_speed[verdict["candidate"]] = leader["speedup"]
    return [
        (
            -math.sqrt(class_speed[verdict["candidate"]] * verdict["size_ratio"]),
            verdict["size_bytes"],
            verdict["accuracy_drop_points"],
            -verdict["speedup"],
            verdict["candidate"],
        )
        for verdict in verdicts
    ]


def _reason(verdicts: Sequence[Document], judgements: Sequence[Judgement], best: int) -> str:
    chosen, judgement = verdicts[best], judgements[best]
    name, within = chosen["candidate"], sum(one.within_budget for one in judgements)
    low, high = chosen["speedup_interval"]
    figures = (
        f"{chosen['speedup']:.2f}x the teacher's speed (95% interval {low:.2f} to {high:.2f}) "
        f"at {100 / chosen['size_ratio']:.1f}% of its size, {_describe_drop(chosen['accuracy_drop_points'])}"
    )
    if judgement.within_budget:
        among = f"the best of the {within} within it by {RULE}" if within > 1 else "the only one within it"
        reason = f"{name} meets the budget and is {among}: {figures}."
    else:
        missed = "; ".join(judgement.reasons)
        reason = f"{name} comes nearest to the budget, which no candidate meets: {missed}. It reaches {figures}."
    if not any(map(_beats_teacher, verdicts)):
        reason += " No candidate is faster, smaller or more accurate than the teacher: keep the teacher."
    if warnings := chosen.get("warnings"):
        reason += f" Mind that {'; '.join(dict.fromkeys(line.split(':')[0] for line in warnings))}."
    return reason


def _describe_drop(points: float) -> str:
    if abs(points) < 0.005:
        return "the same accuracy"
    return f"accuracy {abs(points):.2f} points {'below' if points >= 0 else 'above'} the teacher's"


def _beats_teacher(verdict: Document) -> bool:
    """Better on some axis, in speed by more than the measurement's interval."""
    return bool(verdict["speedup_interval"][0] > 1 or verdict["size_ratio"] > 1 or verdict["accuracy_drop_points"] < 0)
