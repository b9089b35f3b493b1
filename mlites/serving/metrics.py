"""What Triton counts of a served version, read from its metrics endpoint: rates, failures, latency and its percentiles.

The format is Prometheus' text exposition; percentiles are there where the server runs with summary latencies.
"""

import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mlites.errors import InputError
from mlites.serving.server import TritonRefused

LINE = re.compile(r"^(nv_inference_\w+?)(\{[^}]*\})?\s+(\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
QUANTILES = {"0.5": "p50_ms", "0.95": "p95_ms", "0.99": "p99_ms"}
READ_SECONDS = 5.0
METRICS_PORT = 8002


@dataclass(frozen=True)
class Reading:
    """One version's counters since its servers loaded it, over all servers.

    Attributes:
        answered: requests.
        failed: requests; those that their callers gave up are not counted.
        rows: inferred.
        executions: of batches.
        request_us: from request to answer, all requests together.
        queue_us: of this waiting for a batch.
        quantiles_ms: of the last minutes, by name; the worst of all servers, empty where they keep none.
    """

    answered: float
    failed: float
    rows: float
    executions: float
    request_us: float
    queue_us: float
    quantiles_ms: dict[str, float]


@dataclass(frozen=True)
class Served:
    """What happened between two readings.

    Attributes:
        seconds: between them; None where there is but one, and all since loading is told.
        requests: answered.
        failures: requests that failed.
        requests_per_second: None without a time.
        mean_ms: from request to answer, None without requests.
        queue_ms: of this in the queue.
        mean_batch: rows of an execution.
        p50_ms: of the last minutes, None where the server keeps no percentiles.
        p95_ms: likewise.
        p99_ms: likewise.
    """

    seconds: float | None
    requests: int
    failures: int
    requests_per_second: float | None
    mean_ms: float | None
    queue_ms: float | None
    mean_batch: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @property
    def failure_share(self) -> float:
        """Of all requests, in [0, 1]."""
        return self.failures / max(self.requests + self.failures, 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def metrics_urls(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Where Triton tells its metrics: MLITES_TRITON_METRICS, or port 8002 of its replicas or MLITES_TRITON_URL's host.

    A host name that leads to several servers, as MLITES_TRITON_REPLICAS does, gives the address of each.

    Raises:
        InputError: neither is an address.
    """
    given = environment.get("MLITES_TRITON_METRICS")
    replicas = environment.get("MLITES_TRITON_REPLICAS")
    parts = urlsplit(given or (f"http://{replicas}" if replicas else environment.get("MLITES_TRITON_URL", "")))
    try:
        good = parts.scheme in ("http", "https") and parts.hostname
        port = (parts.port if given else METRICS_PORT) or METRICS_PORT
    except ValueError:
        good = False
    if not good:
        raise InputError("MLITES_TRITON_METRICS must be http://host:port of a Triton's metrics, by default port 8002")
    path = parts.path if given and parts.path.strip("/") else "/metrics"
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)}
    except OSError:
        found = set()
    hosts = sorted(found) if len(found) > 1 and parts.scheme == "http" else [str(parts.hostname)]
    places = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
    return [urlunsplit((parts.scheme, place, path, "", "")) for place in places]


def read_metrics(urls: list[str], model: str, version: int) -> Reading:
    """Read a version's counters, added up over servers.

    Raises:
        TritonRefused: a server does not answer, or knows nothing of the version.
    """
    texts = [_fetch(url) for url in urls]
    readings = [one for text in texts if (one := parse_metrics(text, model, version)) is not None]
    if not readings:
        raise TritonRefused(f"Triton at {urls[0]} tells nothing of {model} version {version}; is it loaded?")
    quantiles: dict[str, float] = {}
    for one in readings:
        for name, value in one.quantiles_ms.items():
            quantiles[name] = max(value, quantiles.get(name, 0.0))
    names = ("answered", "failed", "rows", "executions", "request_us", "queue_us")
    return Reading(**{name: sum(getattr(one, name) for one in readings) for name in names}, quantiles_ms=quantiles)


def parse_metrics(text: str, model: str, version: int) -> Reading | None:
    """A version's counters in the text of one server, None where it is not there.

    >>> parse_metrics('nv_inference_request_success{model="m",version="2"} 7', "m", 2).answered
    7.0
    """
    totals: dict[str, float] = {}
    quantiles: dict[str, float] = {}
    for name, labels, value in LINE.findall(text):
        found = dict(LABEL.findall(labels))
        if found.get("model") != model or found.get("version") != str(version):
            continue
        number = float(value)
        if name == "nv_inference_request_summary_us" and number == number:  # NaN before the first request
            if quantile := QUANTILES.get(found.get("quantile", "")):
                quantiles[quantile] = number / 1000
        elif found.get("reason") != "CANCELED":
            totals[name] = totals.get(name, 0.0) + number
    if not totals:
        return None
    return Reading(
        answered=totals.get("nv_inference_request_success", 0.0),
        failed=totals.get("nv_inference_request_failure", 0.0),
        rows=totals.get("nv_inference_count", 0.0),
        executions=totals.get("nv_inference_exec_count", 0.0),
        request_us=totals.get("nv_inference_request_duration_us", 0.0),
        queue_us=totals.get("nv_inference_queue_duration_us", 0.0),
        quantiles_ms=quantiles,
    )


def between(before: Reading | None, now: Reading, seconds: float | None) -> Served:
    """What happened since an earlier reading; a server that was started again counts from nothing."""
    if before is None or now.answered + now.failed < before.answered + before.failed:
        before, seconds = Reading(0, 0, 0, 0, 0, 0, {}), None
    requests, runs = now.answered - before.answered, now.executions - before.executions
    return Served(
        seconds=seconds,
        requests=round(requests),
        failures=round(now.failed - before.failed),
        requests_per_second=requests / seconds if seconds else None,
        mean_ms=(now.request_us - before.request_us) / requests / 1000 if requests else None,
        queue_ms=(now.queue_us - before.queue_us) / requests / 1000 if requests else None,
        mean_batch=(now.rows - before.rows) / runs if runs else None,
        p50_ms=now.quantiles_ms.get("p50_ms"),
        p95_ms=now.quantiles_ms.get("p95_ms"),
        p99_ms=now.quantiles_ms.get("p99_ms"),
    )


def _fetch(url: str) -> str:
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        with opener.open(url, timeout=READ_SECONDS) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TritonRefused(f"Triton's metrics at {url} do not answer: {reason}; set MLITES_TRITON_METRICS") from None
