"""The reference profile and PSI, against formulas written another way and against scipy."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlites.data.profile import (
    LARGEST_FEATURES,
    Histogram,
    Profile,
    chance_level,
    make_profile,
    measure_drift,
    population_stability_index,
    read_profile,
    watched_columns,
    write_profile,
)

Refusal = Callable[..., str]
COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=12).filter(sum)


def _profile(values: np.ndarray, **classes: int) -> Profile:
    return make_profile((1,), {"x": values}, classes or {"a": len(values)})


def _drift(before: np.ndarray, after: np.ndarray) -> float:
    return measure_drift(_profile(before), {"x": after}, {"a": len(after)})[0]["x"].psi


@given(COUNTS, st.data())
def test_psi_is_the_two_relative_entropies_added(before: list[int], data: st.DataObject) -> None:
    """PSI is Jeffreys' divergence: KL(p, q) + KL(q, p), here by scipy."""
    after = data.draw(st.lists(st.integers(0, 10_000), min_size=len(before), max_size=len(before)).filter(sum))
    p = np.array(before) + 0.5
    q = np.array(after) + 0.5
    expected = float(stats.entropy(p, q) + stats.entropy(q, p))
    assert population_stability_index(np.array(before), np.array(after)) == pytest.approx(expected, abs=1e-9)


def test_psi_of_a_worked_example() -> None:
    """By hand from Siddiqi's table form: sum of (actual% - expected%) * ln(actual% / expected%)."""
    found = population_stability_index(np.array([20_000, 50_000, 30_000]), np.array([30_000, 50_000, 20_000]))
    by_hand = (0.3 - 0.2) * math.log(0.3 / 0.2) + 0 + (0.2 - 0.3) * math.log(0.2 / 0.3)
    assert found == pytest.approx(by_hand, rel=1e-3)


@given(COUNTS)
def test_psi_is_zero_for_the_same_and_finite_for_an_empty_bin(counts: list[int]) -> None:
    assert population_stability_index(np.array(counts), np.array(counts)) == 0
    assert math.isfinite(population_stability_index(np.array([*counts, 0]), np.array([0, *counts])))


@pytest.mark.parametrize("bins", [2, 3, 5, 10, 40, 200])
def test_the_chance_level_is_the_chi_square_quantile(bins: int) -> None:
    expected = stats.chi2.ppf(0.999, bins - 1) * (1 / 500 + 1 / 2000)
    assert chance_level(bins, 500, 2000) == pytest.approx(expected, rel=0.04)


def test_unchanged_data_seldom_exceed_the_chance_level() -> None:
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(500):
        before, after = rng.normal(size=400), rng.normal(size=300)
        drift = measure_drift(_profile(before), {"x": after}, {"a": 300})[0]["x"]
        exceeded += drift.psi > drift.noise
    assert exceeded <= 5


def test_a_histogram_counts_what_lies_between_its_edges() -> None:
    values = np.random.default_rng(1).normal(size=1000)
    histogram = _profile(values).columns["x"]
    bounds = [-math.inf, *histogram.edges, math.inf]
    counts = [sum(low < value <= high for value in values) for low, high in itertools.pairwise(bounds)]
    assert list(histogram.counts) == counts and len(counts) == 10 and max(counts) - min(counts) <= 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros(500), np.full(500, 1.0)),
        (np.zeros(500), np.full(500, -1.0)),
        (np.r_[np.zeros(450), np.linspace(1, 2, 50)], np.r_[np.full(450, -0.1), np.linspace(1, 2, 50)]),
        (np.arange(500) % 2, np.r_[np.zeros(400), np.ones(100)]),
        (np.random.default_rng(0).normal(size=500), np.random.default_rng(1).normal(0.7, size=500)),
        (np.random.default_rng(0).normal(size=500), np.random.default_rng(1).normal(0, 2, size=500)),
    ],
)
def test_shifts_are_seen_in_constant_discrete_and_continuous_columns(before: np.ndarray, after: np.ndarray) -> None:
    assert _drift(before.astype(float), after.astype(float)) > 0.25
    assert _drift(before.astype(float), before.astype(float)) == 0


def test_class_frequencies_drift_too_and_a_new_class_counts() -> None:
    reference = make_profile((1,), {"x": np.zeros(200)}, {"a": 100, "b": 100})
    assert measure_drift(reference, {"x": np.zeros(200)}, {"a": 100, "b": 100})[1].psi == 0
    assert measure_drift(reference, {"x": np.zeros(200)}, {"a": 20, "b": 180})[1].psi > 0.25
    assert measure_drift(reference, {"x": np.zeros(300)}, {"a": 100, "b": 100, "c": 100})[1].psi > 0.25


def test_a_narrow_table_is_watched_by_feature() -> None:
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    watched = watched_columns(table, ("u", "v"))
    assert list(watched) == ["u", "v"] and watched["v"].tolist() == [1, 3, 5]


def test_a_wide_table_is_watched_by_row() -> None:
    table = np.random.default_rng(0).normal(size=(5, LARGEST_FEATURES + 1)).astype(np.float32)
    table[0, 3], table[1, 4], table[1, 5] = np.nan, np.inf, -np.inf
    watched = watched_columns(table, tuple(f"x{i}" for i in range(LARGEST_FEATURES + 1)))
    assert watched["missing values"].tolist() == [1, 0, 0, 0, 0]
    assert watched["infinite values"].tolist() == [0, 2, 0, 0, 0]
    np.testing.assert_allclose(watched["mean"][2:], table[2:].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(watched["spread"][2:], table[2:].std(axis=1), rtol=1e-5)
    assert watched["smallest"][3] == table[3].min() and watched["largest"][3] == table[3].max()


def test_images_are_watched_by_their_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 4, 6), dtype=np.uint8)
    watched = watched_columns(images, ())
    one = images[4999].astype(float)
    assert watched["brightness"][-1] == pytest.approx(one.mean())
    assert watched["contrast"][-1] == pytest.approx(one.std())
    assert (watched["darkest"][-1], watched["brightest"][-1]) == (one.min(), one.max())
    steps = np.abs(one[:, 1:] - one[:, :-1]).mean() + np.abs(one[:, :, 1:] - one[:, :, :-1]).mean()
    assert watched["detail"][-1] == pytest.approx(steps)
    assert watched["channel 2"][-1] == pytest.approx(one[2].mean())
    assert "channel 0" not in watched_columns(images[:, :1], ())


def test_a_single_line_of_pixels_has_detail_along_itself_alone() -> None:
    line = np.array([[[[0, 10, 0, 10]]]], np.uint8)
    assert watched_columns(line, ())["detail"].tolist() == [10.0]


def test_a_profile_survives_its_file_byte_for_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"x": rng.normal(size=300), "constant": np.full(300, 0.1)}
    profile = make_profile((2,), columns, {"a": 100, "b": 200})
    write_profile(profile, tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == profile
    write_profile(read_profile(tmp_path / "profile.json"), tmp_path / "again.json")
    assert (tmp_path / "profile.json").read_bytes() == (tmp_path / "again.json").read_bytes()


VALID: dict[str, Any] = {
    "format": "mlites-profile/1",
    "input_shape": [1],
    "rows": 3,
    "classes": {"a": 1, "b": 2},
    "columns": {"x": {"edges": [0.5], "counts": [1, 2]}},
}


def _column(**changes: Any) -> dict[str, Any]:
    return {"columns": {"x": {**VALID["columns"]["x"], **changes}}}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": "mlites-data/1"}, "expected a reference profile (mlites-profile/1)"),
        ({"extra": 1}, "unexpected or missing fields"),
        ({"rows": 4}, "classes must add up to rows"),
        ({"rows": "3"}, "input_shape or rows"),
        ({"input_shape": [1.5]}, "input_shape or rows"),
        ({"input_shape": None}, "input_shape or rows"),
        ({"classes": [3]}, "classes must be counts"),
        ({"classes": {"a": -1, "b": 4}}, "classes must be counts"),
        ({"classes": {"a": True, "b": 2}}, "classes must be counts"),
        ({"classes": {}, "rows": 0}, "classes must add up to rows"),
        ({"columns": {}}, "columns must be histograms"),
        ({"columns": []}, "columns must be histograms"),
        ({"columns": {"x": [1]}}, "needs edges and counts"),
        (_column(more=1), "needs edges and counts"),
        (_column(edges=[0.5, 0.5], counts=[1, 1, 1]), "edges must rise"),
        (_column(edges=["0"]), "edges must rise"),
        (_column(edges=0.5), "edges must rise"),
        (_column(counts=[3]), "one more than edges"),
        (_column(counts=[1, 1]), "add up to rows"),
        (_column(counts=[1.0, 2.0]), "one more than edges"),
        (_column(counts=[4, -1]), "one more than edges"),
    ],
)
def test_a_profile_that_breaks_a_rule_is_refused(
    tmp_path: Path, changes: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(VALID))
    assert read_profile(path).columns == {"x": Histogram((0.5,), (1, 2))}
    path.write_text(json.dumps({**VALID, **changes}))
    message = refusal(read_profile, path)
    assert rule in message and str(path) in message


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff", "nope"])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str | bytes, refusal: Refusal) -> None:
    (tmp_path / "profile.json").write_bytes(text.encode() if isinstance(text, str) else text)
    assert "not JSON" in refusal(read_profile, tmp_path / "profile.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_an_edge_that_is_no_number_is_refused(tmp_path: Path, number: str, refusal: Refusal) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(VALID).replace("0.5", number))
    assert "edges must rise" in refusal(read_profile, tmp_path / "profile.json")


def test_a_missing_or_giant_profile_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    assert "cannot read the reference profile: No such file" in refusal(read_profile, tmp_path / "none")
    with (tmp_path / "profile.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    assert "larger than 64 MiB" in refusal(read_profile, tmp_path / "profile.json")
