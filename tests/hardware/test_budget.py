from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlites.hardware.budget import judge
from mlites.recipe import Budget
from tests.hardware.verdicts import make_verdict

EVERYTHING = Budget(accuracy_drop_points=1, p95_ms=0.75, speedup=2, size_kib=500, peak_memory_mib=60)


def test_exactly_at_every_limit_is_within():
    verdict = make_verdict(accuracy=0.94, speedup=2.0, size=500 * 1024, memory=60 << 20)
    assert verdict["accuracy_drop_points"] > 1, "in floats 100 * (0.95 - 0.94) is more than 1"
    assert verdict["latency_ms"]["p95"] == 0.75
    judgement = judge(verdict, EVERYTHING)
    assert (judgement.within_budget, judgement.reasons, judgement.miss) == (True, (), 0)


@given(st.integers(1, 10_000), st.data())
def test_the_drop_is_judged_as_exact_fractions_would(rows: int, data: st.DataObject):
    teacher = data.draw(st.integers(0, rows))
    own = data.draw(st.integers(0, teacher))
    points = data.draw(st.integers(0, 200))  # hundredths
    verdict = make_verdict() | {"accuracy_drop_points": 100 * (teacher / rows - own / rows)}
    exact = Fraction(100 * (teacher - own), rows) <= Fraction(points, 100)
    assert judge(verdict, Budget(accuracy_drop_points=points / 100)).within_budget == exact


def test_each_missed_line_tells_value_limit_and_difference():
    verdict = make_verdict(accuracy=0.9, speedup=1.6, size=600 * 1024, memory=75 << 20)
    judgement = judge(verdict, EVERYTHING)
    assert not judgement.within_budget
    assert judgement.reasons == (
        "accuracy drop is 5 points, the budget asks at most 1 points: missed by 4 points",
        "latency p95 is 0.9375 ms, the budget asks at most 0.75 ms: missed by 0.1875 ms",
        "speedup is 1.6 x, the budget asks at least 2 x: missed by 0.4 x",
        "size is 600 KiB, the budget asks at most 500 KiB: missed by 100 KiB",
        "peak memory is 75 MiB, the budget asks at most 60 MiB: missed by 15 MiB",
    )
    assert judgement.miss == pytest.approx(4 + 0.25 + 0.2 + 0.2 + 0.25)


def test_a_line_left_out_is_not_judged():
    verdict = make_verdict(speedup=0.01, size=1 << 40, memory=1 << 40)
    assert judge(verdict, Budget()).within_budget


def test_a_gain_in_accuracy_meets_a_budget_of_no_drop_and_the_smallest_drop_misses_it():
    none = Budget(accuracy_drop_points=0)
    assert judge(make_verdict(accuracy=0.96), none).within_budget
    missed = judge(make_verdict(accuracy=0.9499), none)
    assert missed.reasons == ("accuracy drop is 0.01 points, the budget asks at most 0 points: missed by 0.01 points",)
    assert missed.miss == pytest.approx(0.01)


def test_figures_are_written_without_an_exponent():
    verdict = make_verdict() | {"latency_ms": {"p50": 1, "p95": 0.0000123456, "p99": 1}, "size_bytes": 123_456_789_012}
    first, second = judge(verdict, Budget(p95_ms=0.00001, size_kib=1)).reasons
    assert first == "latency p95 is 0.000012 ms, the budget asks at most 0.00001 ms: missed by 0.000002 ms"
    assert second.startswith("size is 120600000 KiB")
