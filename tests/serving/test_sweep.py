"""The sweep, on a real Triton; its rules, on figures made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlites.errors import InputError
from mlites.models.card import read_card
from mlites.recipe import Budget, Hardware, Serving, Sweep
from mlites.recipe.hardware import Arrival
from mlites.serving.repository import configuration, configuration_json
from mlites.serving.server import Triton
from mlites.serving.sweep import Load, Setting, Tried, rank, settle_on, sweep_recipe, sweep_serving
from mlites.serving.traffic import Answered, send_traffic
from tests.serving.served import Network

CLOSED = Arrival()
FEW = Sweep(
    max_batch_sizes=(8,), max_queue_delays_us=(0, 2000), instances=(2, 64), threads=(), callers=(1, 4), seconds=0.15
)


def tried(setting: Setting, *loads: tuple[int, float, float]) -> Tried:
    """Loads of callers, requests a second, and milliseconds of every response."""
    return Tried(setting, [Load(one, [Answered(np.full(100, took), 0, rate, 0.0)]) for one, rate, took in loads])


def test_settings_within_the_limit_go_by_throughput_and_the_others_by_response_time() -> None:
    fast, within, slow = Setting(32, 0, 2, 1), Setting(8, 0, 1, 1), Setting(8, 9, 1, 1)
    found = [
        tried(fast, (1, 400, 2.0), (8, 3000, 9.0)),
        tried(within, (1, 500, 1.0), (8, 1500, 4.0)),
        tried(slow, (1, 90, 11.0), (8, 200, 40.0)),
    ]
    ranked = rank(found, 1, CLOSED, 5.0)
    assert [one.setting for one, _ in ranked] == [within, fast, slow]
    assert [(one["callers"], one["rows_per_second"], one["meets"]) for _, one in ranked] == [
        (8, 1500, True), (1, 400, True), (1, 90, False)
    ]  # fmt: skip
    assert [one.setting for one, _ in rank(found, 1, CLOSED, None)] == [fast, within, slow]
    assert [one.setting for one, _ in rank(found, 1, CLOSED, 0.1)] == [within, fast, slow]


def test_of_settings_that_are_as_fast_the_smaller_one_wins() -> None:
    big, small, slower = Setting(8, 0, 2, 2), Setting(8, 0, 1, 1), Setting(8, 9, 1, 1)
    found = [tried(big, (8, 1000, 3.0)), tried(small, (8, 980, 3.5)), tried(slower, (8, 900, 1.0))]
    assert [one.setting for one, _ in rank(found, 1, CLOSED, 5.0)] == [small, big, slower]


def test_a_setting_must_keep_up_with_independent_callers_and_answer_all() -> None:
    poisson = Arrival(pattern="poisson", rate_per_second=100)
    behind = tried(Setting(8, 0, 1, 1), (1, 90, 1.0))
    keeps = tried(Setting(8, 0, 2, 1), (1, 99, 3.0))
    assert [one.setting.instances for one, _ in rank([behind, keeps], 1, poisson, 5.0)] == [2, 1]
    failing = Tried(Setting(8, 0, 4, 1), [Load(8, [Answered(np.full(9, 1.0), 1, 9000.0, 0.0)])])
    ((_, figures),) = rank([failing], 1, CLOSED, 5.0)
    assert figures["errors"] == 1 and not figures["meets"]


def test_a_real_triton_is_tried_setting_by_setting_and_left_as_it_was(in_stack: dict[str, str], tmp_path: Path) -> None:
    triton, network = Triton.from_environment(), Network("images")
    folder, rows = network.folder(tmp_path), network.normalised(network.raw(1)).astype(np.float32)
    before = triton.ready_versions()
    serving = Serving(max_batch_size=4, max_queue_delay_us=0)
    document = sweep_serving(triton, folder, serving, FEW, CLOSED, rows, threads=1, cores=2, p95_ms=2000.0)
    assert triton.ready_versions() == before
    settings = document["settings"]
    names = ("max_batch_size", "max_queue_delay_us", "instances", "threads")
    asked = {tuple(one[name] for name in names) for one in settings}
    assert (4, 0, 1, 1) in asked and (8, 0, 1, 1) in asked and len(asked) == len(settings) == 4
    assert all(instances * threads <= 2 for _, _, instances, threads in asked)  # no more threads than cores
    assert settings[0]["meets"] and document["reason"].startswith("the highest throughput of 4 settings: ")
    for one in settings:
        assert one["rows_per_second"] > 0 and one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"] and not one["errors"]
        assert [load["callers"] for load in one["loads"]] == [1, 4] and one["mean_batch"] >= 1
        assert one["rows_per_second"] <= 1.05 * 1000 * one["callers"] / one["p50_ms"] * 1.5  # Little's law, skewed
    best = settings[0]
    options, threads = settle_on(document, serving.model_copy(update={"sweep": FEW}), 7)
    assert (options.max_batch_size, options.instances, options.max_queue_delay_us, threads) == (
        best["max_batch_size"], best["instances"], best["max_queue_delay_us"], best["threads"],
    )  # fmt: skip
    assert options.sweep is None and settle_on(None, serving, 7) == (serving, 7)


def test_a_limit_that_none_meets_is_told(in_stack: dict[str, str], tmp_path: Path) -> None:
    triton, network = Triton.from_environment(), Network("images")
    sweep = Sweep(max_batch_sizes=(), max_queue_delays_us=(), instances=(), callers=(2,), seconds=0.1)
    serving = Serving(max_batch_size=4, max_queue_delay_us=0, sweep=sweep)
    hardware = Hardware(arrival=Arrival(pattern="poisson", rate_per_second=50), cores=1, batch=3)
    rows = network.normalised(network.raw(2)).astype(np.float32)
    document = sweep_recipe(triton, network.folder(tmp_path), serving, hardware, Budget(p95_ms=1e-4), rows)
    (only,) = document["settings"]
    assert not only["meets"] and only["callers"] is None and document["rows_per_request"] == 3
    assert document["reason"].startswith("no setting answers these requests within 0.0001 ms; this one is the quickest")


def test_settings_that_cannot_be_are_told(in_stack: dict[str, str], tmp_path: Path) -> None:
    triton, network = Triton.from_environment(), Network("images")
    folder, rows = network.folder(tmp_path), network.normalised(network.raw(9)).astype(np.float32)
    with pytest.raises(
        InputError, match=r"a request has 9 rows \(hardware.batch\); none of max_batch_sizes takes as many"
    ):
        sweep_serving(triton, folder, Serving(max_batch_size=4), FEW, CLOSED, rows, threads=1, cores=2, p95_ms=None)
    (folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"model\.onnx|no setting is left that Triton loads"):
        sweep_serving(triton, folder, Serving(max_batch_size=4), FEW, CLOSED, rows[:1], threads=1, cores=2, p95_ms=None)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"callers": []}, "at least 1 item"), ({"instances": [1, 1]}, "a number stands here twice: 1, 1")],
)
def test_a_sweep_that_contradicts_itself_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sweep.model_validate(options)


def test_independent_callers_come_at_their_rate_and_count_their_waiting(
    in_stack: dict[str, str], tmp_path: Path
) -> None:
    triton, network = Triton.from_environment(), Network("images")
    folder, name = network.folder(tmp_path), "sweep-traffic"
    serving = Serving(max_batch_size=4, max_queue_delay_us=50_000)  # each waits for 50 ms, or for three others
    config = configuration_json(configuration(name, read_card(folder), serving, [1], 1))
    triton.load_apart(name, config, {"1/model.onnx": (folder / "model.onnx").read_bytes()})
    rows = network.normalised(network.raw(1)).astype(np.float32)
    try:
        found = send_traffic(triton, name, 1, rows, Arrival(pattern="poisson", rate_per_second=40), 1, 1.5)
        assert found.errors == 0 and 25 <= found.per_second <= 58  # 60 arrivals, four standard deviations
        assert np.median(found.response_ms) > 15
        missing = send_traffic(triton, f"{name}-none", 1, rows, CLOSED, 1, 0.1)
        assert missing.errors > 0 and len(missing.response_ms) == 0 and missing.per_second == 0
    finally:
        triton.unload(name)
