import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlites.errors import InputError
from mlites.hardware.infer_only import main
from mlites.hardware.throughput import measure_throughput
from mlites.recipe import Hardware
from tests.hardware.networks import FEATURES, make_model, make_weights

Save = Callable[..., Path]
ROWS = np.ones((3, FEATURES), np.float32)


def test_nothing_is_measured_where_the_profile_asks_for_nothing(save: Save):
    assert measure_throughput(save(b""), ROWS, Hardware()) == []


def test_each_batch_and_number_of_sessions_has_its_rate_and_interval(save: Save):
    path = save(make_model(make_weights((256, 256))))
    found = measure_throughput(path, ROWS, Hardware(seconds=0.15, batches=(64,), streams=(2,)))
    assert [(one.batch, one.streams) for one in found] == [(1, 1), (64, 1), (1, 2)]
    for one in found:
        low, high = one.interval
        assert 0 < low <= one.rows_per_second <= high
        assert 0 < one.response_ms["p50"] <= one.response_ms["p95"] <= one.response_ms["p99"]
        assert one.to_json()["interval"] == [low, high]
    # a call of 64 rows is far from taking as long as 64 calls: their overhead alone is half of each
    assert found[1].rows_per_second > found[0].rows_per_second


def test_one_session_answers_as_often_as_its_calls_are_long(save: Save):
    path = save(make_model(make_weights((1024, 1024))))
    one, _ = measure_throughput(path, ROWS, Hardware(seconds=0.3, batch=32, batches=(1,)))
    # the mean call takes no less than the median one on any machine, busy or not
    assert one.rows_per_second <= 32e3 / one.response_ms["p50"] * 1.2


def test_requests_come_at_the_rate_asked_for_and_the_same_ones_each_time(save: Save):
    path = save(make_model(make_weights()))
    arrival = {"pattern": "poisson", "rate_per_second": 300}
    (found,) = measure_throughput(path, ROWS, Hardware.model_validate({"seconds": 1.5, "arrival": arrival}))
    assert found.rows_per_second == pytest.approx(300, rel=0.25)  # 450 requests: three standard deviations are 14%
    assert found.interval[0] <= found.rows_per_second <= found.interval[1]


def test_requests_that_come_faster_than_they_are_answered_wait(save: Save):
    path = save(make_model(make_weights((512, 512))))
    hardware = Hardware.model_validate(
        {"seconds": 0.3, "batch": 64, "arrival": {"pattern": "poisson", "rate_per_second": 20_000}}
    )
    (found,) = measure_throughput(path, ROWS, hardware)
    assert found.rows_per_second < 64 * 20_000 / 2
    answer_ms = 64e3 / found.rows_per_second
    assert found.response_ms["p50"] > 3 * answer_ms


def test_a_model_that_cannot_run_gives_one_line(save: Save):
    path = save(make_model(make_weights(), features=5))
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot use it: .*MatMul") as caught:
        measure_throughput(path, ROWS, Hardware(seconds=0.1, streams=(2,)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", [{}, {"rate_per_second": 400, "seed": 1}])
def test_the_program_answers_from_the_time_that_it_is_told(
    save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pattern: dict[str, int]
):
    path = save(make_model(make_weights()))
    begin = time.monotonic() + 0.3
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ROWS.tobytes() + f"{begin}\n".encode())))
    providers = [["CPUExecutionProvider", {}]]
    main({"model": str(path), "threads": 1, "providers": providers, "shape": ROWS.shape, "seconds": 0.1, **pattern})
    assert time.monotonic() >= begin
    ready, document = capsys.readouterr().out.splitlines()
    found = json.loads(document)
    assert ready == "ready" and len(found["done"]) == len(found["response_ms"]) >= 1
    assert found["done"] == sorted(found["done"]) and found["done"][0] > 0
    if pattern:  # the same requests for the same seed
        arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / 400, size=90))
        asked = arrivals[arrivals < 0.1][: len(found["done"])]
        assert np.array(found["done"]) - np.array(found["response_ms"]) / 1e3 == pytest.approx(asked, abs=1e-6)
