import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlites.errors import InputError
from mlites.serving.metrics import between, metrics_urls, parse_metrics, read_metrics
from mlites.serving.server import Triton, TritonRefused
from mlites.storage import Store
from tests.serving.served import Network, serve, withdraw

TEXT = """# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="m",version="1"} 10
nv_inference_request_success{model="m",version="2"} 40
nv_inference_request_failure{model="m",reason="OTHER",version="2"} 2
nv_inference_request_failure{model="m",reason="REJECTED",version="2"} 3
nv_inference_request_failure{model="m",reason="CANCELED",version="2"} 50
nv_inference_count{model="m",version="2"} 80
nv_inference_exec_count{model="m",version="2"} 20
nv_inference_request_duration_us{model="m",version="2"} 120000
nv_inference_queue_duration_us{model="m",version="2"} 40000
nv_inference_request_summary_us{model="m",version="2",quantile="0.95"} 4500
nv_inference_request_summary_us{model="m",version="2",quantile="0.99"} Nan
nv_inference_request_summary_us_count{model="m",version="2"} 40
"""


def test_counters_of_one_version_are_added_up_over_reasons() -> None:
    now = parse_metrics(TEXT, "m", 2)
    assert now is not None
    served = between(None, now, None)
    assert (served.requests, served.failures, served.mean_ms, served.queue_ms) == (40, 5, 3.0, 1.0)
    assert (served.mean_batch, served.p95_ms, served.p99_ms, served.requests_per_second) == (4.0, 4.5, None, None)
    assert served.failure_share == pytest.approx(5 / 45)
    assert parse_metrics(TEXT, "m", 3) is None and parse_metrics(TEXT, "n", 2) is None


def test_between_two_readings_counts_what_is_new_and_a_restart_counts_anew() -> None:
    before, now = parse_metrics(TEXT, "m", 2), parse_metrics(TEXT.replace("} 40\n", "} 60\n"), "m", 2)
    assert before and now
    served = between(before, now, 4.0)
    assert (served.requests, served.failures, served.requests_per_second, served.mean_batch) == (20, 0, 5.0, None)
    again = between(now, before, 4.0)
    assert (again.requests, again.seconds) == (40, None)


@pytest.mark.parametrize(
    ("environment", "urls"),
    [
        ({"MLITES_TRITON_URL": "http://127.0.0.1:8000"}, ["http://127.0.0.1:8002/metrics"]),
        ({"MLITES_TRITON_METRICS": "http://127.0.0.1:9", "MLITES_TRITON_URL": "http://h"}, ["http://127.0.0.1:9/metrics"]),
        ({"MLITES_TRITON_REPLICAS": "127.0.0.1:8000", "MLITES_TRITON_URL": "http://h"}, ["http://127.0.0.1:8002/metrics"]),
        ({"MLITES_TRITON_METRICS": "https://t.example/m"}, ["https://t.example:8002/m"]),
    ],
)  # fmt: skip
def test_metrics_are_beside_triton_or_where_the_environment_says(environment: dict[str, str], urls: list[str]) -> None:
    assert metrics_urls(environment) == urls


@pytest.mark.parametrize(
    "environment", [{}, {"MLITES_TRITON_METRICS": "h:8002"}, {"MLITES_TRITON_METRICS": "http://h:x"}]
)
def test_another_form_of_address_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="MLITES_TRITON_METRICS must be http://host:port"):
        metrics_urls(environment)


@pytest.fixture
def name(in_stack: dict[str, str]) -> Iterator[str]:
    name = f"w-{uuid.uuid4().hex[:8]}"
    yield name
    withdraw(Store.open(in_stack["MLITES_STORE"]), Triton.from_environment(), name)


def test_tritons_own_counters_and_percentiles_are_read(in_stack: dict[str, str], name: str, tmp_path: Path) -> None:
    store, triton, network = Store.open(in_stack["MLITES_STORE"]), Triton.from_environment(), Network("table")
    rows = network.normalised(network.raw(4)).astype(np.float32)
    serve(store, triton, network.folder(tmp_path), name, rows)
    before = read_metrics(metrics_urls(), name, 1)
    for _ in range(12):
        triton.infer_grpc(name, 1, rows[:2])
    served = between(before, read_metrics(metrics_urls(), name, 1), 2.0)
    assert (served.requests, served.failures, served.requests_per_second) == (12, 0, 6.0)
    assert served.mean_ms and served.queue_ms is not None and 0 < served.queue_ms < served.mean_ms
    assert served.p50_ms and served.p95_ms and 0 < served.p50_ms <= served.p95_ms
    with pytest.raises(TritonRefused, match=rf"tells nothing of {name} version 7; is it loaded\?"):
        read_metrics(metrics_urls(), name, 7)
    with pytest.raises(TritonRefused, match=r"do not answer: .*set MLITES_TRITON_METRICS"):
        read_metrics(["http://127.0.0.1:9/metrics"], name, 1)
