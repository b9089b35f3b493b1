"""The best candidate with the reason, whether or not it meets the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlites.errors import InputError
from mlites.files import digest_json
from mlites.hardware.budget import Judgement, judge
from mlites.hardware.nearest import find_nearest
from mlites.hardware.pareto import covered_share, pareto_front
from mlites.recipe import Budget

FORMAT = "mlites-selection/2"
RULE = "highest geometric mean of speedup and size ratio"

Document = dict[str, Any]


def select(verdicts: list[Document], budget: Budget) -> Document:
    """Choose among measured candidates.

    Within the budget the highest geometric mean of speedup and size ratio wins; candidates whose speeds the measurement
    cannot tell apart count as equally fast, so of these the smaller wins, then the more accurate. If none is within
    the budget, the one that misses it by the least wins, and the document tells what it would take. The same verdicts
    in any order give the same choice.

    Args:
        verdicts: documents of `mlites.hardware.validate`, all against the same teacher; those of candidates that failed
            are listed and never chosen.
        budget: what a candidate must reach.

    Returns:
        The selection document (``mlites-selection/2``); its candidates stand in the order of the verdicts.

    Raises:
        InputError: no verdict, a name given twice, different teachers, or no candidate that could be judged.
    """
    measured = [verdict for verdict in verdicts if not verdict.get("failed")]
    _check(verdicts, measured)
    judgements = [judge(verdict, budget) for verdict in measured]
    baseline = _middle_baseline(measured)
    axes = _axes(measured, baseline)
    *on_front, teacher_on_front = pareto_front([[-cost for cost in row] for row in axes.costs]).tolist()
    ranks = _ranks(measured)
    keys = [(not one.within_budget, one.miss, rank) for one, rank in zip(judgements, ranks, strict=True)]
    best = min(range(len(measured)), key=keys.__getitem__)
    # a wide interval may have put it among faster ones, before another that is better or equal on every axis
    while better := [
        i for i in range(len(measured)) if keys[i][:2] <= keys[best][:2] and _beats(measured[i], measured[best])
    ]:
        best = min(better, key=keys.__getitem__)
    chosen = measured[best]
    nearest = find_nearest([one["candidate"] for one in measured], judgements, best)
    judged = {
        verdict["candidate"]: {
            **{key: value for key, value in verdict.items() if key not in ("format", "provenance", "baseline")},
            "on_front": front,
            "within_budget": judgement.within_budget,
            "lines": [line.to_json() for line in judgement.lines],
            "reasons": list(judgement.reasons),
        }
        for verdict, front, judgement in zip(measured, on_front, judgements, strict=True)
    }
    return {
        "format": FORMAT,
        "selected": chosen["candidate"],
        "model": chosen["model"],
        "reason": _reason(verdicts, measured, judgements, best, [one["sentence"] for one in nearest]),
        "within_budget": judgements[best].within_budget,
        "budget": budget.model_dump(mode="json"),
        "nearest": nearest,
        "front": {
            "axes": axes.names,
            "reference": dict(zip(axes.names, axes.reference, strict=True)),
            "reference_name": "twice the teacher's time, size, memory and energy, at the accuracy of guessing",
            "hypervolume": covered_share(axes.costs, axes.reference),
        },
        "baseline": {**baseline, "on_front": teacher_on_front},
        "candidates": [judged.get(verdict["candidate"]) or _failed(verdict) for verdict in verdicts],
        "verdicts": [digest_json(verdict) for verdict in verdicts],
    }


def _failed(verdict: Document) -> Document:
    failed = verdict["failed"]
    return {
        "candidate": verdict["candidate"],
        "passes": verdict["passes"],
        "failed": failed,
        "on_front": False,
        "within_budget": False,
        "lines": [],
        "reasons": [f"failed at {failed['step']}: {failed['error']}"],
        "warnings": [],
    }


def _check(verdicts: list[Document], measured: list[Document]) -> None:
    if not verdicts:
        raise InputError("no verdict to select from: validate at least one candidate first")
    names = [verdict["candidate"] for verdict in verdicts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"candidate {name!r} has two verdicts; give each candidate once")
    if not measured:
        causes = [f"{one['candidate']} at {one['failed']['step']}: {one['failed']['error']}" for one in verdicts]
        raise InputError(f"no candidate could be judged; {'; '.join(causes)}")
    first = measured[0]
    for verdict in measured:
        if verdict["baseline"]["model"] != first["baseline"]["model"]:
            raise InputError(
                f"{first['candidate']!r} and {verdict['candidate']!r} were measured against different teachers; "
                "validate them against the same one"
            )


def _middle_baseline(verdicts: Sequence[Document]) -> Document:
    """The teacher as it was measured when it was neither fast nor slow."""
    baselines = sorted((verdict["baseline"] for verdict in verdicts), key=lambda one: tuple(one["latency_ms"].values()))
    middle: Document = baselines[(len(baselines) - 1) // 2]
    return middle


@dataclass(frozen=True)
class _Axes:
    """What the front is over, as costs: less is better.

    Attributes:
        names: of the axes.
        costs: of each candidate and, last, of the teacher.
        reference: what a candidate must undercut to count.
    """

    names: list[str]
    costs: list[list[float]]
    reference: list[float]


def _axes(verdicts: Sequence[Document], baseline: Document) -> _Axes:
    """The part of rows answered wrongly; time, size, memory and energy as parts of the teacher's.

    Time and energy are compared with the teacher of the same measurement. Memory counts in whole MiB: a page more or
    less is no trade. Energy counts where it is known of every candidate.
    """
    teacher_memory = _mebibytes(baseline["peak_memory_bytes"])
    costs = [
        [
            1 - one["accuracy"],
            1 / one["speedup"],
            1 / one["size_ratio"],
            _mebibytes(one["peak_memory_bytes"]) / teacher_memory,
        ]
        for one in verdicts
    ]
    names = ["error", "time", "size", "memory"]
    energies = [_energy_share(one) for one in verdicts]
    if all(energies):
        names.append("energy")
        costs = [[*row, share] for row, share in zip(costs, energies, strict=True) if share]
    teacher = [1 - baseline["accuracy"], *[1.0] * (len(names) - 1)]
    guessing = 1 - 1 / max(len(baseline["confusion"]), 2)
    return _Axes(names, [*costs, teacher], [guessing, *[2.0] * (len(names) - 1)])


def _mebibytes(count: int) -> int:
    return math.ceil(count / 2**20)


def _energy_share(verdict: Document) -> float | None:
    own, teacher = ((one.get("energy") or {}).get("millijoules") for one in (verdict, verdict["baseline"]))
    return own / teacher if own and teacher else None


def _beats(verdict: Document, other: Document) -> bool:
    """At least as accurate, fast and small, and better in one of these."""
    pairs = [(verdict[key], other[key]) for key in ("accuracy", "speedup", "size_ratio")]
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


def _reason(
    verdicts: Sequence[Document],
    measured: Sequence[Document],
    judgements: Sequence[Judgement],
    best: int,
    nearest: Sequence[str],
) -> str:
    chosen, judgement = measured[best], judgements[best]
    name, within = chosen["candidate"], sum(one.within_budget for one in judgements)
    low, high = chosen["speedup_interval"]
    figures = (
        f"{chosen['speedup']:.2f}x the teacher's speed (95% interval {low:.2f} to {high:.2f}) "
        f"at {100 / chosen['size_ratio']:.1f}% of its size, {_describe_drop(chosen['accuracy_drop_points'])}"
    )
    if judgement.within_budget:
        among = f"the best of the {within} within it by {RULE}" if within > 1 else "the only one within it"
        reason = f"{name} meets the budget and is {among}: {figures}."
        if judgement.reasons:
            reason += f" The recipe lets it pass though a line is undecided: {'; '.join(judgement.reasons)}."
    else:
        missed = "; ".join(judgement.reasons)
        reason = f"{name} comes nearest to the budget, which no candidate meets: {missed}. It reaches {figures}."
        reason += "".join(f" {sentence}" for sentence in nearest)
    if not any(map(_beats_teacher, measured)):
        reason += " No candidate is faster, smaller or more accurate than the teacher: keep the teacher."
    if warnings := chosen.get("warnings"):
        reason += f" Mind that {'; '.join(dict.fromkeys(line.split(':')[0] for line in warnings))}."
    if failed := [one["candidate"] for one in verdicts if one.get("failed")]:
        reason += f" Could not be judged: {', '.join(failed)}."
    return reason


def _describe_drop(points: float) -> str:
    if abs(points) < 0.005:
        return "the same accuracy"
    return f"accuracy {abs(points):.2f} points {'below' if points >= 0 else 'above'} the teacher's"


def _beats_teacher(verdict: Document) -> bool:
    """Better on some axis, in speed by more than the measurement's interval."""
    return bool(verdict["speedup_interval"][0] > 1 or verdict["size_ratio"] > 1 or verdict["accuracy_drop_points"] < 0)
