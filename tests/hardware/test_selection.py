import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlites.errors import InputError
from mlites.files import canonical_json, digest_json
from mlites.hardware.selection import select
from mlites.recipe import Budget
from tests.hardware.verdicts import make_failed, make_verdict

CANDIDATE = st.builds(
    lambda accuracy, speedup, noise, size: {"accuracy": accuracy, "speedup": speedup, "noise": noise, "size": size},
    st.sampled_from([0.90, 0.93, 0.94, 0.945, 0.95, 0.96]),
    st.sampled_from([0.5, 1.0, 1.9, 2.0, 2.05, 2.1, 4.0]),
    st.sampled_from([0.001, 0.02, 0.1, 0.5]),
    st.sampled_from([100_000, 250_000, 1_000_000, 2_000_000]),
)


def named(*candidates: dict[str, float]) -> list[dict[str, object]]:
    return [make_verdict(f"{chr(ord('a') + index)}-net", **one) for index, one in enumerate(candidates)]  # type: ignore[arg-type]


def test_within_the_budget_speed_and_size_are_weighed_by_their_geometric_mean():
    fast = make_verdict("fast", speedup=4.4, size=500_000)
    small = make_verdict("small", speedup=4.0, size=100_000)
    both = select([fast, small], Budget())
    assert both["selected"] == "small"
    assert both["model"] == small["model"]
    assert both["within_budget"] is True
    assert both["reason"] == (
        "small meets the budget and is the best of the 2 within it by highest geometric mean of speedup and size "
        "ratio: 4.00x the teacher's speed (95% interval 3.92 to 4.08) at 10.0% of its size, the same accuracy."
    )


def test_of_candidates_whose_speeds_overlap_the_smaller_wins_then_the_more_accurate():
    noisy = make_verdict("noisy", speedup=2.1, noise=0.1, size=300_000)
    smaller = make_verdict("smaller", speedup=2.0, noise=0.1, size=299_000)
    assert select([noisy, smaller], Budget())["selected"] == "smaller"
    equal = make_verdict("equal", speedup=2.0, noise=0.1, size=300_000, accuracy=0.951)
    assert select([noisy, equal], Budget())["selected"] == "equal"


def test_a_speed_that_the_measurement_can_tell_apart_counts():
    faster = make_verdict("faster", speedup=2.1, noise=0.001, size=300_000)
    smaller = make_verdict("smaller", speedup=2.0, noise=0.001, size=299_000)
    assert select([faster, smaller], Budget())["selected"] == "faster"


def test_the_smallest_and_fastest_does_not_win_outside_the_budget():
    wrong = make_verdict("wrong", accuracy=0.5, speedup=100, size=1000)
    right = make_verdict("right", accuracy=0.945)
    chosen = select([wrong, right], Budget())
    assert chosen["selected"] == "right"
    assert chosen["reason"].startswith("right meets the budget and is the only one within it: 2.00x")
    assert chosen["candidates"][0]["reasons"] == [
        "accuracy drop is 45 points, the budget asks at most 1 points: missed by 44 points"
    ]


def test_where_none_meets_the_budget_the_nearest_is_named_with_what_it_misses():
    near = make_verdict("near", accuracy=0.938, speedup=1.1, size=900_000)
    far = make_verdict("far", accuracy=0.90, speedup=9, size=10_000)
    chosen = select([far, near], Budget())
    assert (chosen["selected"], chosen["within_budget"]) == ("near", False)
    assert chosen["reason"] == (
        "near comes nearest to the budget, which no candidate meets: accuracy drop is 1.2 points, the budget asks at "
        "most 1 points: missed by 0.2 points. It reaches 1.10x the teacher's speed (95% interval 1.08 to 1.12) at "
        "90.0% of its size, accuracy 1.20 points below the teacher's. It needs 0.2 points more accuracy at this size "
        "and speed; no candidate has it, nearest to it: far (accuracy drop 5 points)."
    )


def test_what_a_missed_line_takes_is_told_with_the_candidates_that_have_it():
    small = make_verdict("small", accuracy=0.92, speedup=3, size=200_000)
    right = make_verdict("right", accuracy=0.95, speedup=3, size=900_000)
    wrong = make_verdict("wrong", accuracy=0.80, speedup=3, size=180 * 1024)
    chosen = select([wrong, small, right], Budget(size_kib=180))
    assert (chosen["selected"], chosen["within_budget"]) == ("small", False)
    accuracy, size = chosen["nearest"]
    assert accuracy == {
        "line": "accuracy drop",
        "sentence": "It needs 2 points more accuracy at this size and speed; nearest with it: right (accuracy drop 0 "
        "points, but misses size).",
        "candidates": [{"candidate": "right", "value": 0.0, "misses": ["size"]}],
    }
    needed = 100 * (1 - 180 * 1024 / 200_000)
    assert size["sentence"].startswith(f"It needs {needed:.2g}% less size at this accuracy; nearest with it: wrong (")
    assert [one["candidate"] for one in size["candidates"]] == ["wrong"]
    assert all(one["sentence"] in chosen["reason"] for one in (accuracy, size))


def test_a_lone_candidate_that_misses_is_told_what_it_takes_all_the_same():
    (line,) = select([make_verdict(speedup=1.6)], Budget(speedup=2))["nearest"]
    assert line["sentence"] == "It needs 25% more speedup at this accuracy; there is no other candidate."
    (line,) = select([make_verdict(energy=None)], Budget(energy_mj=2))["nearest"]
    assert line["sentence"] == "It needs a measurement of its energy; there is no other candidate."


def test_within_the_budget_nothing_is_missing():
    assert select([make_verdict()], Budget())["nearest"] == []


def test_an_undecided_candidate_gives_way_to_a_worse_one_that_is_decided():
    unsure = make_verdict("unsure", speedup=4.1, noise=0.1, size=100_000)
    sure = make_verdict("sure", speedup=4.1, noise=0.01, size=900_000)
    both = select([unsure, sure], Budget(speedup=4))
    assert (both["selected"], both["within_budget"]) == ("sure", True)
    alone = select([unsure], Budget(speedup=4))
    assert (alone["selected"], alone["within_budget"]) == ("unsure", False)
    assert (
        "speedup is 4.1 x, the budget asks at least 4 x: undecided, its 95% interval is 3.69 to 4.51 x"
        in alone["reason"]
    )
    assert alone["nearest"][0]["sentence"].startswith("It needs a longer or quieter measurement of its speedup")


def test_the_recipe_may_let_an_undecided_line_pass_and_the_reason_tells():
    unsure = make_verdict("unsure", speedup=4.1, noise=0.1)
    chosen = select([unsure], Budget(speedup=4, undecided="deploy"))
    assert chosen["within_budget"] is True
    assert chosen["candidates"][0]["lines"][1]["verdict"] == "undecided"
    assert "The recipe lets it pass though a line is undecided: speedup is 4.1 x" in chosen["reason"]


def test_candidates_that_failed_are_listed_with_their_error_and_never_chosen():
    chosen = select(
        [make_failed("broken"), make_verdict("poor", accuracy=0.1), make_failed("other", "export")], Budget()
    )
    assert chosen["selected"] == "poor"
    broken = chosen["candidates"][0]
    assert broken["failed"] == {"step": "quantize", "error": "no layer can be quantized"}
    assert (broken["on_front"], broken["within_budget"], broken["lines"]) == (False, False, [])
    assert broken["reasons"] == ["failed at quantize: no layer can be quantized"]
    assert chosen["reason"].endswith("Could not be judged: broken, other.")
    assert len(chosen["verdicts"]) == 3
    json.loads(canonical_json(chosen))


def test_the_front_is_over_memory_and_energy_too():
    plain = {"accuracy": 0.95, "speedup": 2.0, "size": 500_000, "memory": 60 << 20}
    fewer = make_verdict("fewer", **plain | {"accuracy": 0.94}, energy=3.9)
    chosen = select([make_verdict("plain", **plain), fewer], Budget())
    assert chosen["front"]["axes"] == ["error", "time", "size", "memory", "energy"]
    assert [one["on_front"] for one in chosen["candidates"]] == [True, True]
    unknown = select([make_verdict("plain", **plain, energy=None), fewer], Budget())
    assert unknown["front"]["axes"] == ["error", "time", "size", "memory"]
    assert [one["on_front"] for one in unknown["candidates"]] == [True, False]
    page = make_verdict("page", **plain | {"accuracy": 0.94, "memory": (60 << 20) - 4096})
    assert [one["on_front"] for one in select([make_verdict("plain", **plain), page], Budget())["candidates"]] == [
        True,
        False,
    ]


def test_the_hypervolume_of_one_candidate_and_the_teacher_is_the_union_of_two_boxes():
    one = make_verdict(accuracy=0.9, speedup=4, size=250_000, memory=35 << 20, energy=6.0)
    front = select([one], Budget())["front"]
    assert front["reference"] == {"error": 0.5, "time": 2.0, "size": 2.0, "memory": 2.0, "energy": 2.0}
    gained = (1 - 0.1 / 0.5) * (1 - 1 / 8) * (1 - 1 / 8) * (1 - 1 / 4) * (1 - 6 / 16)
    teacher = (1 - 0.05 / 0.5) / 2**4
    both = (1 - 0.1 / 0.5) / 2**4  # the worse of the two on every axis
    assert front["hypervolume"] == pytest.approx(gained + teacher - both)
    worse = make_verdict("worse", accuracy=0.85, speedup=2, size=500_000, memory=70 << 20, energy=7.0)
    assert select([one, worse], Budget())["front"]["hypervolume"] == pytest.approx(front["hypervolume"])


def test_where_nothing_beats_the_teacher_the_reason_says_so_and_only_the_teacher_is_on_the_front():
    verdicts = [
        make_verdict("same", speedup=1.01, noise=0.02, size=1_000_000),
        make_verdict("slow", speedup=0.5, size=1_000_000),
    ]
    chosen = select(verdicts, Budget())
    assert chosen["selected"] == "same"
    assert chosen["reason"].endswith(
        "No candidate is faster, smaller or more accurate than the teacher: keep the teacher."
    )
    slow = make_verdict("slow", speedup=0.5, accuracy=0.94, size=2_000_000, memory=70 << 20, energy=9.0)
    worse = select([slow], Budget())
    assert worse["baseline"]["on_front"] is True and worse["candidates"][0]["on_front"] is False


def test_a_candidate_better_on_every_axis_takes_the_teacher_off_the_front():
    chosen = select([make_verdict(accuracy=0.96)], Budget())
    assert chosen["baseline"]["on_front"] is False and chosen["candidates"][0]["on_front"] is True
    assert "accuracy 1.00 points above the teacher's" in chosen["reason"]
    assert "keep the teacher" not in chosen["reason"]


def test_the_baseline_is_the_median_of_its_measurements():
    verdicts = [make_verdict(name, teacher_ms=ms) for name, ms in (("a", 1.0), ("b", 9.0), ("c", 1.2))]
    baseline = select(verdicts, Budget())["baseline"]
    assert baseline["latency_ms"] == pytest.approx({"p50": 1.2, "p95": 2.4, "p99": 3.6})
    assert (baseline["name"], baseline["accuracy"], baseline["size_bytes"]) == ("teacher", 0.95, 1_000_000)


def test_the_document_names_the_verdicts_it_rests_on_and_leaves_them_unchanged():
    verdicts = named({"speedup": 2.0}, {"speedup": 3.0})
    before = copy.deepcopy(verdicts)
    chosen = select(verdicts, Budget(size_kib=600))
    assert verdicts == before
    assert chosen["format"] == "mlites-selection/2"
    assert chosen["verdicts"] == [digest_json(verdict) for verdict in verdicts]
    assert [one["candidate"] for one in chosen["candidates"]] == ["a-net", "b-net"]
    assert not {"provenance", "baseline", "format"} & set(chosen["candidates"][0])
    assert chosen["candidates"][0]["confusion"] == verdicts[0]["confusion"]
    assert Budget.model_validate(chosen["budget"]) == Budget(size_kib=600)
    assert json.loads(canonical_json(chosen)) == chosen


def test_the_reason_ends_with_what_to_mind_of_the_chosen_candidate_alone():
    slow = "quantization made it slower: 0.62x its FP32 form (95% interval 0.60 to 0.64)"
    lost = [f"prune cost accuracy: {points} points on validation rows" for points in (2.0, 3.0)]
    chosen = select([make_verdict("a", warnings=(slow, *lost)), make_verdict("b", speedup=1.1, size=900_000)], Budget())
    assert chosen["reason"].endswith("the same accuracy. Mind that quantization made it slower; prune cost accuracy.")
    quiet = select([make_verdict("a"), make_verdict("b", speedup=1.1, size=900_000, warnings=(slow,))], Budget())
    assert "Mind" not in quiet["reason"] and quiet["candidates"][1]["warnings"] == [slow]


def test_cost_and_speed_over_the_source_are_handed_on():
    chosen = select([make_verdict()], Budget())
    (one,) = chosen["candidates"]
    assert (one["macs"], one["parameters"], one["download_bytes"]) == (4_000_000, 125_000, 450_000)
    assert (one["speedup_over_source"], one["speedup_over_source_interval"]) == (1.5, [1.4, 1.6])
    assert chosen["baseline"]["macs"] == 8_000_000


def test_a_noisy_measurement_wins_nothing_from_a_candidate_that_is_better_on_every_axis():
    leader = {"accuracy": 0.9, "speedup": 2.05, "noise": 0.001, "size": 100_000}
    noisy = {"accuracy": 0.94, "speedup": 2.0, "noise": 0.1, "size": 1_000_000}
    better = {"accuracy": 0.945, "speedup": 2.0, "noise": 0.001, "size": 1_000_000}
    verdicts = named(leader, noisy, better)
    assert select(verdicts, Budget())["selected"] == verdicts[2]["candidate"]


@given(st.lists(CANDIDATE, min_size=1, max_size=8), st.randoms())
@settings(max_examples=200)
def test_the_choice_does_not_depend_on_the_order_and_is_beaten_by_none_within_the_budget(candidates, random):
    verdicts = named(*candidates)
    chosen = select(verdicts, Budget())
    shuffled = random.sample(verdicts, len(verdicts))
    assert select(shuffled, Budget())["selected"] == chosen["selected"]
    by_name = {one["candidate"]: one for one in chosen["candidates"]}
    best = by_name[chosen["selected"]]
    within = [one for one in chosen["candidates"] if one["within_budget"]]
    assert best["within_budget"] == chosen["within_budget"] == bool(within)
    for other in within:
        pairs = [(best[key], other[key]) for key in ("accuracy", "speedup", "size_ratio")]
        assert not (all(theirs >= ours for ours, theirs in pairs) and any(theirs > ours for ours, theirs in pairs))


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        ([], "no verdict to select from: validate at least one candidate first"),
        (
            [make_failed("a"), make_failed("b", "validate", "cut short")],
            "no candidate could be judged; a at quantize: no layer can be quantized; b at validate: cut short",
        ),
        ([make_verdict("a"), make_verdict("a")], "candidate 'a' has two verdicts; give each candidate once"),
        (
            [make_verdict("a"), make_verdict("b") | {"baseline": make_verdict()["baseline"] | {"model": "e" * 64}}],
            "'a' and 'b' were measured against different teachers; validate them against the same one",
        ),
    ],
)
def test_verdicts_that_cannot_be_compared_are_refused(verdicts: list[dict[str, object]], told: str):
    with pytest.raises(InputError) as caught:
        select(verdicts, Budget())
    assert str(caught.value) == told
