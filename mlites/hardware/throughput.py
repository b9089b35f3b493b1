"""Throughput: rows a second in larger batches, under concurrent sessions, and as requests really come.

Each session answers in a process of its own, as the instances of a server do: the interpreter's lock does not count.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.hardware.fresh_process import FreshProcess
from mlites.recipe import Hardware

STARTS = 3  # of all processes: where memory happens to lie is drawn anew
WINDOWS = 8  # of one start
PATIENCE_SECONDS = 0.05  # between saying when to begin and the beginning
RESAMPLES = 1000
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}


@dataclass(frozen=True)
class Throughput:
    """What a model answers in a time.

    Attributes:
        batch: rows in one inference.
        streams: sessions that answer at the same time.
        rows_per_second: of all sessions together.
        interval: 95% bootstrap interval over windows of time.
        response_ms: percentiles of the time from a request's arrival to its answer, its wait for the session included.
    """

    batch: int
    streams: int
    rows_per_second: float
    interval: tuple[float, float]
    response_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "streams": self.streams,
            "rows_per_second": self.rows_per_second,
            "interval": list(self.interval),
            "response_ms": self.response_ms,
        }


def measure_throughput(path: Path, rows: NDArray[np.float32], hardware: Hardware) -> list[Throughput]:
    """Let sessions answer requests for the profile's seconds, a third of them in each of three starts.

    Args:
        path: ONNX file.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        hardware: the batch, further batches of one session, numbers of sessions that share the threads, the arrival of
            requests. Independent callers choose a session at random, and wait for it.

    Returns:
        The judged batch on one session, then the others; nothing where the profile asks for no others.

    Raises:
        InputError: the model cannot be loaded or run.
    """
    if not hardware.batches and not hardware.streams and hardware.arrival.pattern == "closed":
        return []
    settings = [(batch, 1) for batch in dict.fromkeys((hardware.batch, *hardware.batches))]
    settings += [(hardware.batch, streams) for streams in hardware.streams if streams > 1]
    return [_measure(path, rows, hardware, batch, streams) for batch, streams in settings]


def _measure(path: Path, rows: NDArray[np.float32], hardware: Hardware, batch: int, streams: int) -> Throughput:
    seconds = hardware.seconds / STARTS
    windows, responses = [], []
    for start in range(STARTS):
        found = _start(path, rows, hardware, batch, streams, seconds, start)
        done = np.concatenate([one["done"] for one in found])
        responses += [one["response_ms"] for one in found]
        # the last answers come after the end, when fewer sessions are busy
        windows.append(np.histogram(done, WINDOWS, (0, min(max(one["done"]) for one in found))))
    counts = np.concatenate([count for count, _ in windows])
    lengths = np.concatenate([np.diff(edges) for _, edges in windows])
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    low, high = np.quantile(counts[drawn].sum(axis=1) / lengths[drawn].sum(axis=1), [0.025, 0.975])
    took = np.percentile(np.concatenate(responses), list(PERCENTILES.values()))
    return Throughput(
        batch=batch,
        streams=streams,
        rows_per_second=float(batch * counts.sum() / lengths.sum()),
        interval=(float(batch * low), float(batch * high)),
        response_ms={name: float(value) for name, value in zip(PERCENTILES, took, strict=True)},
    )


def _start(
    path: Path, rows: NDArray[np.float32], hardware: Hardware, batch: int, streams: int, seconds: float, start: int
) -> list[dict[str, Any]]:
    """What each session says."""
    threads = max(1, hardware.threads // streams)
    rate = hardware.arrival.rate_per_second
    with ExitStack() as open_processes:
        processes = []
        for stream in range(streams):
            job: dict[str, Any] = {"seconds": seconds}
            if rate is not None:  # a random share of a Poisson process is one
                job |= {"rate_per_second": rate / streams, "seed": start * streams + stream}
            process = FreshProcess(path, rows, hardware, threads=threads, batch=batch, **job)
            open_processes.enter_context(closing(process))
            processes.append(process)
        for process in processes:
            process.wait_until_ready()
        at = time.monotonic() + PATIENCE_SECONDS
        for process in processes:
            process.begin(at)
        return [process.result() for process in processes]
