from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlites.hardware.budget import Line, judge
from mlites.recipe import Budget
from tests.hardware.verdicts import make_verdict

EVERYTHING = Budget(accuracy_drop_points=1, p95_ms=0.75, speedup=2, size_kib=500, peak_memory_mib=60)


def test_exactly_at_every_limit_is_within():
    verdict = make_verdict(accuracy=0.94, speedup=2.0, noise=0, size=500 * 1024, memory=60 << 20)
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
    verdict = make_verdict(accuracy=0.9, speedup=1.6, noise=0.01, size=600 * 1024, memory=75 << 20)
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
    latency = {"latency_ms": {"p50": 1, "p95": 0.0000123456, "p99": 1}, "latency_interval_ms": None}
    verdict = make_verdict() | latency | {"size_bytes": 123_456_789_012}
    first, second = judge(verdict, Budget(p95_ms=0.00001, size_kib=1)).reasons
    assert first == "latency p95 is 0.000012 ms, the budget asks at most 0.00001 ms: missed by 0.000002 ms"
    assert second.startswith("size is 120600000 KiB")


def lines(verdict: dict[str, Any], **limits: Any) -> dict[str, Line]:
    return {line.name: line for line in judge(verdict, Budget(**limits)).lines}


@pytest.mark.parametrize(
    ("limit", "verdict"), [(1.91, "pass"), (1.9, "pass"), (1.89, "undecided"), (1.7, "undecided"), (1.69, "fail")]
)
def test_an_upper_limit_is_decided_by_the_whole_interval(limit: float, verdict: str):
    line = Line("latency p95", 1.8, limit, "ms", (1.7, 1.9))
    assert line.verdict == verdict
    assert line.margin == pytest.approx(limit - 1.8)


@pytest.mark.parametrize(
    ("limit", "verdict"), [(3.69, "pass"), (3.7, "pass"), (3.71, "undecided"), (4.5, "undecided"), (4.51, "fail")]
)
def test_a_lower_limit_is_decided_by_the_whole_interval(limit: float, verdict: str):
    line = Line("speedup", 4.1, limit, "x", (3.7, 4.5), least=True)
    assert line.verdict == verdict
    assert line.margin == pytest.approx(4.1 - limit)


def test_an_undecided_line_keeps_from_the_budget_unless_the_recipe_lets_it_pass():
    unsure = make_verdict(speedup=2.0, noise=0.1)
    strict = judge(unsure, Budget(speedup=1.95))
    assert not strict.within_budget
    assert strict.reasons == (
        "speedup is 2 x, the budget asks at least 1.95 x: undecided, its 95% interval is 1.8 to 2.2 x",
    )
    lenient = judge(unsure, Budget(speedup=1.95, undecided="deploy"))
    assert lenient.within_budget and lenient.reasons == strict.reasons
    assert not judge(make_verdict(speedup=1.0), Budget(speedup=1.95, undecided="deploy")).within_budget


def test_every_line_finds_its_figure():
    found = lines(
        make_verdict(class_drops=((30, 9, 1), (30, 0, 0)), noise=0.001),
        class_drop_points=5, ece_rise_points=2, p95_ms=1, speedup=3, rows_per_second=6500, cold_start_ms=31,
        size_kib=500, download_kib=400, peak_memory_mib=70, energy_mj=5,
    )  # fmt: skip
    assert {name: (line.value, line.verdict) for name, line in found.items()} == {
        "accuracy drop": (0.0, "pass"),
        "loss in a class": (pytest.approx(100 * 8 / 30), "fail"),
        "rise of the calibration error": (pytest.approx(1.0), "pass"),
        "latency p95": (0.75, "pass"),
        "speedup": (2.0, "fail"),
        "throughput": (6000.0, "fail"),
        "cold start": (31.5, "fail"),
        "size": (500_000 / 1024, "pass"),
        "download": (pytest.approx(450_000 / 1024), "fail"),
        "peak memory": (60.0, "pass"),
        "energy": (4.0, "pass"),
    }
    assert (found["throughput"].note, found["energy"].note) == ("batch 8, 1 at once", "estimated")
    assert found["loss in a class"].sentence.startswith(
        "loss in a class is 26.67 points (cat), the budget asks at most"
    )


def test_a_line_without_a_measurement_is_undecided():
    bare = {key: None for key in ("throughput", "cold_start_ms", "energy", "class_drops", "ece", "download_bytes")}
    found = lines(
        make_verdict() | bare,
        class_drop_points=5, ece_rise_points=2, rows_per_second=6500, cold_start_ms=31, download_kib=400, energy_mj=5,
    )  # fmt: skip
    del found["accuracy drop"]
    assert {line.verdict for line in found.values()} == {"undecided"} and len(found) == 6
    assert found["energy"].sentence == "energy is not known, the budget asks at most 5 mJ: undecided"
    assert found["energy"].margin is None


def test_a_class_that_lost_by_chance_alone_is_no_loss_and_says_so():
    line = lines(make_verdict(class_drops=((36, 4, 0), (36, 0, 1))), class_drop_points=5)["loss in a class"]
    assert (line.value, line.verdict) == (0.0, "pass")
    assert line.note == "11.11 points lost in cat, which chance explains: p = 0.06"
    gained = lines(make_verdict(class_drops=((36, 0, 4), (36, 0, 0))), class_drop_points=5)["loss in a class"]
    assert (gained.value, gained.note) == (0.0, "")


def reject_share(generator: np.random.Generator, lost: list[float], won: float, *, by_value: bool = False) -> float:
    """Of 1000 test sets of 36 rows a class, the share in which a limit of 5 points in any class is missed."""
    rejected = 0
    for _ in range(1000):
        drops = [generator.multinomial(36, [share, won, 1 - share - won])[:2] for share in lost]
        verdict = make_verdict(class_drops=tuple((36, int(a), int(b)) for a, b in drops)) | {
            "classes": list("abcdefghij")
        }
        if by_value:
            rejected += max(one["points"] for one in verdict["class_drops"]) > 5
        else:
            rejected += judge(verdict, Budget(class_drop_points=5)).lines[1].verdict == "fail"
    return rejected / 1000


def test_with_36_rows_a_class_noise_does_not_reject_but_27_points_lost_in_one_class_do():
    generator = np.random.default_rng(0)
    no_loss = [0.03] * 10
    assert reject_share(generator, no_loss, 0.03, by_value=True) > 0.7
    assert reject_share(generator, no_loss, 0.03) < 0.02
    assert reject_share(generator, [0.3, *no_loss[1:]], 0.03) > 0.85


@given(st.floats(0.1, 10), st.floats(0, 3), st.floats(0.1, 10), st.booleans())
def test_margin_and_verdict_agree(value: float, half: float, limit: float, least: bool):
    line = Line("one", value, limit, "ms", (value - half, value + half), least=least)
    assert line.margin is not None
    if line.verdict == "pass":
        assert line.margin >= -1e-8 * max(1, limit) and line.miss == 0
    if line.verdict == "fail":
        assert line.margin < 0 and line.miss > 0
