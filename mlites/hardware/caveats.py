"""What a user should know before trusting a candidate: passes that did not do what they are for."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

LOST_POINTS = 1.0  # of validation accuracy by one pass; less is what a pass may cost
SHORTFALL = 0.5  # of the channels that a pruning was asked to remove
FEWER_MACS = 1.1  # times; where multiply-accumulates fall by less, no speed is expected of it
SHRINKING = ("prune", "factorize", "share", "qat", "quantize")

Document = dict[str, Any]


def find_caveats(verdict: Document, validation_rows: int) -> list[str]:
    """One line for each caveat, in words before a colon and in figures after it.

    Args:
        verdict: all of it but ``warnings``; facts that a step's provenance lacks are passed over.
        validation_rows: that the passes' accuracies were found on.
    """
    steps = [_Step(entry) for entry in verdict["provenance"]]
    return [
        *_of_speed(verdict),
        *(line for step in steps for line in (*_of_distillation(step), *_of_pruning(step), *_of_rollback(step))),
        *_of_accuracy(steps, validation_rows),
    ]


class _Step:
    """One entry of the provenance, of which nothing is taken for granted."""

    def __init__(self, entry: Document) -> None:
        self.name = str(entry.get("step"))
        self.options = _mapping(entry.get("options"))
        self.facts = _mapping(entry.get("metrics"))

    def number(self, key: str) -> float | None:
        """A fact, or else an option; None where it is no finite number."""
        value = self.facts.get(key, self.options.get(key))
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if fits else None  # type: ignore[arg-type]


def _mapping(value: Any) -> Document:
    return value if isinstance(value, dict) else {}


def _of_speed(verdict: Document) -> Iterator[str]:
    over_source, interval = verdict.get("speedup_over_source"), verdict.get("speedup_over_source_interval")
    if over_source is not None and interval and interval[0] <= 1:
        what = "made it slower" if interval[1] < 1 else "brought no speed"
        yield f"quantization {what}: {over_source:.2f}x its FP32 form ({_interval(interval)})"
    speedup, bounds = verdict["speedup"], verdict["speedup_interval"]
    own, teacher = verdict.get("macs"), verdict["baseline"].get("macs")
    if own and teacher and teacher / own >= FEWER_MACS and bounds[0] <= 1:
        figures = f"{own / teacher:.0%} of the teacher's, {speedup:.2f}x its speed ({_interval(bounds)})"
        yield f"fewer multiply-accumulates bought no speed: {figures}"
    elif bounds[1] < 1:
        yield f"it is slower than the teacher: {speedup:.2f}x its speed ({_interval(bounds)})"


def _interval(bounds: Sequence[float]) -> str:
    return f"95% interval {bounds[0]:.2f} to {bounds[1]:.2f}"


def _of_distillation(step: _Step) -> Iterator[str]:
    if step.name != "distill" or step.facts.get("paid") is not False:
        return
    gain, chance = step.number("gain_points"), step.number("p_value")
    figures = "no better than" if gain is None else f"{gain:+.2g} points over"
    p_value = "" if chance is None else f", p = {chance:.2g}"
    yield f"distillation did not pay: {figures} the same student trained without the teacher{p_value}"


def _of_pruning(step: _Step) -> Iterator[str]:
    before, after, asked = (step.number(key) for key in ("channels_before", "channels_after", "amount"))
    if step.name != "prune" or before is None or after is None or asked is None or before <= 0:
        return
    removed = 1 - after / before
    if removed < SHORTFALL * asked:
        yield f"pruning removed less than asked: {removed:.0%} of the channels instead of {asked:.0%}"


def _of_rollback(step: _Step) -> Iterator[str]:
    if step.name == "quantize" and isinstance(step.facts.get("rolled_back"), str):
        yield f"quantization was undone: {step.facts['rolled_back']}"
    drop, limit = step.number("drop_points_after"), step.number("max_drop_points")
    if step.name == "quantize" and drop is not None and limit is not None and drop > limit + 1e-9:
        yield f"quantization misses its accuracy limit: {drop:.2g} points lost on validation rows, limit {limit:g}"


def _of_accuracy(steps: Sequence[_Step], rows: int) -> Iterator[str]:
    """Passes that lost more accuracy than chance explains, taking the two accuracies for independent."""
    known = [(step, accuracy) for step in steps if (accuracy := step.number("validation_accuracy")) is not None]
    for (_, before), (step, after) in pairwise(known):
        mean = (before + after) / 2
        chance = 196 * math.sqrt(max(2 * mean * (1 - mean), 0.0) / max(rows, 1))
        lost = 100 * (before - after)
        if step.name in SHRINKING and lost > max(LOST_POINTS, chance):
            yield f"{step.name} cost accuracy: {lost:.1f} points on validation rows"
