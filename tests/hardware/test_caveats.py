import math
from typing import Any

import pytest

from mlites.hardware.caveats import find_caveats
from tests.hardware.verdicts import make_verdict

Facts = dict[str, Any]


def step(name: str, options: Facts | None = None, **facts: Any) -> Facts:
    return {"step": name, "options": options or {}, "metrics": facts}


def caveats(*steps: Facts, rows: int = 10_000, **changes: Any) -> list[str]:
    return find_caveats(make_verdict() | {"provenance": list(steps)} | changes, rows)


def test_a_chain_that_did_what_it_is_for_has_none():
    steps = [
        step("train", validation_accuracy=0.95),
        step("distill", paid=True, gain_points=1.2, p_value=0.001, validation_accuracy=0.93),
        step("prune", {"amount": 0.5}, channels_before=100, channels_after=56, validation_accuracy=0.925),
        step("quantize", {"max_drop_points": 0.5}, drop_points_after=0.5, validation_accuracy=0.92),
    ]
    assert caveats(*steps) == []


def test_a_quantized_model_slower_than_its_source_or_not_faster_says_so():
    slower = caveats(speedup_over_source=0.62, speedup_over_source_interval=[0.60, 0.64])
    assert slower == ["quantization made it slower: 0.62x its FP32 form (95% interval 0.60 to 0.64)"]
    equal = caveats(speedup_over_source=1.01, speedup_over_source_interval=[0.99, 1.03])
    assert equal == ["quantization brought no speed: 1.01x its FP32 form (95% interval 0.99 to 1.03)"]
    assert caveats(speedup_over_source=None, speedup_over_source_interval=None) == []


def test_fewer_macs_without_speed_are_told_and_slowness_is_not_told_twice():
    slow = {"speedup": 0.9, "speedup_interval": [0.88, 0.92]}
    fewer = "fewer multiply-accumulates bought no speed: 50% of the teacher's, 0.90x its speed"
    assert caveats(**slow) == [f"{fewer} (95% interval 0.88 to 0.92)"]
    same = "it is slower than the teacher: 0.90x its speed (95% interval 0.88 to 0.92)"
    assert caveats(**slow, macs=8_000_000) == caveats(**slow, macs=None) == [same]
    assert caveats(speedup=1.0, speedup_interval=[0.99, 1.01], macs=8_000_000) == []


def test_distillation_that_did_not_pay_gives_its_gain_and_its_chance():
    assert caveats(step("distill", paid=False, gain_points=0.1, p_value=0.4)) == [
        "distillation did not pay: +0.1 points over the same student trained without the teacher, p = 0.4"
    ]
    assert caveats(step("distill", paid=False)) == [
        "distillation did not pay: no better than the same student trained without the teacher"
    ]
    assert caveats(step("distill", paid=None)) == caveats(step("distill")) == []


@pytest.mark.parametrize(("after", "told"), [(75, False), (76, True)])
def test_pruning_that_removes_less_than_half_of_what_was_asked_says_so(after: int, told: bool):
    found = caveats(step("prune", {"amount": 0.5}, channels_before=100, channels_after=after))
    assert found == (["pruning removed less than asked: 24% of the channels instead of 50%"] if told else [])


def test_an_accuracy_limit_that_the_rollback_misses_is_told():
    found = caveats(step("quantize", {"max_drop_points": 0.5}, drop_points_after=0.8))
    assert found == ["quantization misses its accuracy limit: 0.8 points lost on validation rows, limit 0.5"]


def test_a_quantization_that_was_undone_says_so():
    why = "no layer can be quantized within the limit: the model is the float one it was"
    assert caveats(step("quantize", rolled_back=why)) == [f"quantization was undone: {why}"]


def test_a_pass_that_costs_accuracy_is_named_and_a_smaller_student_is_not_blamed():
    steps = [
        step("train", validation_accuracy=0.95),
        step("distill", validation_accuracy=0.90),
        step("prune", validation_accuracy=0.87),
        step("export"),
        step("quantize", validation_accuracy=0.869),
    ]
    assert caveats(*steps) == ["prune cost accuracy: 3.0 points on validation rows"]


@pytest.mark.parametrize(("rows", "told"), [(700, False), (800, True)])
def test_a_loss_that_chance_explains_is_not_told(rows: int, told: bool):
    before, after = 0.92, 0.89
    chance = 1.96 * math.sqrt(before * (1 - before) / rows + after * (1 - after) / rows)
    assert (before - after > chance) == told
    steps = [step("train", validation_accuracy=before), step("prune", validation_accuracy=after)]
    assert bool(caveats(*steps, rows=rows)) == told


@pytest.mark.parametrize("wrong", ["0.5", None, [1], {"a": 1}, True, float("nan"), -math.inf])
def test_facts_of_another_kind_are_passed_over(wrong: object):
    keys = ("gain_points", "p_value", "channels_before", "channels_after", "drop_points_after", "validation_accuracy")
    steps = [step(name, {"amount": wrong}, **dict.fromkeys(keys, wrong)) for name in ("distill", "prune", "quantize")]
    assert caveats(*steps, {"step": "prune"}, {"step": "prune", "metrics": wrong, "options": wrong}) == []
