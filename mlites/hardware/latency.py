"""Latency of several models side by side: interleaved rounds in one process, ratios pair by pair, with their interval.

Sources: Kalibera & Jones (2013), resample every level at which a repetition varies; Mytkowicz et al. (2009), where
memory happens to lie biases a benchmark, so sessions are opened anew several times; Chen & Revels (2016), other
processes only ever add time, so the fastest calls of a block are the model's own.
"""

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mlites.inference import INPUT, OUTPUT, open_session

SITTINGS = 10  # times that all sessions are opened anew: between sittings ratios vary by up to 1%, within them far less
FEWEST_ROUNDS = 1  # in a sitting, however slow the models are
BLOCK_SECONDS = 0.001  # far above the timer's resolution, short enough that the machine hardly changes between blocks
RESOLUTION = 0.005  # two sessions of one file differ by up to this; more rounds do not average it out
RESAMPLES = 1000


@dataclass(frozen=True)
class Latency:
    """One model's time for one batch.

    Attributes:
        samples_ms: every call that was timed, in order (calls,).
        speedup: the first model's time over this one's, median over the rounds.
        speedup_interval: 95% bootstrap interval of the speedup, widened by what no number of rounds averages out.
        rounds: pairs of blocks that the speedup rests on.
        sittings: undisturbed time of each round, sitting by sitting (rounds,).
    """

    samples_ms: NDArray[np.float64]
    speedup: float
    speedup_interval: tuple[float, float]
    rounds: int
    sittings: tuple[NDArray[np.float64], ...]

    def speedup_over(self, other: "Latency", seed: int = 0) -> tuple[float, tuple[float, float]]:
        """The other model's time over this one's, both of the same measurement, and its interval."""
        return _compare(other.sittings, self.sittings, seed)

    def percentiles_ms(self) -> dict[str, float]:
        """Median, 95th and 99th percentile of all calls."""
        values = np.percentile(self.samples_ms, [50, 95, 99])
        return {name: float(value) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}


def measure_latency(
    models: Sequence[Path], rows: NDArray[np.float32], *, threads: int, batch: int, seconds: float, seed: int = 0
) -> list[Latency]:
    """Time models against the first of them.

    A round runs one block of calls of each model, in one order and then in the other, so that a machine that slows down
    slows all alike. A round's ratio compares the fastest quarter of each block, which preempted calls do not reach; the
    percentiles are of all calls.

    Args:
        models: ONNX files; the first is what speedups refer to.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        threads: of one session.
        batch: rows in one call.
        seconds: to time each model, warm-up and loading not counted.
        seed: of the bootstrap.

    Returns:
        One for each model, in their order; the first has a speedup of 1.

    Raises:
        InputError: ONNX Runtime refuses a model.
    """
    feed = {INPUT: np.resize(rows, (batch, *rows.shape[1:]))}
    samples: list[list[NDArray[np.float64]]] = [[] for _ in models]
    sittings: list[NDArray[np.float64]] = []  # undisturbed times (rounds, models)
    with _no_garbage_collection():
        for sitting in range(SITTINGS):
            order = list(range(len(models)))[:: -1 if sitting % 2 else 1]
            opened = {index: open_session(models[index], threads) for index in order}
            sessions = [opened[index] for index in range(len(models))]
            calls = [_calls_of_block(_warm_up(one, feed, seconds / SITTINGS), seconds) for one in sessions]
            times: list[list[float]] = []
            end = time.perf_counter() + seconds * len(models) / SITTINGS
            while len(times) < FEWEST_ROUNDS or time.perf_counter() < end:
                blocks = {index: _time_calls(sessions[index], feed, calls[index]) for index in order}
                order.reverse()
                times.append([_undisturbed(blocks[index]) for index in range(len(models))])
                for index, block in blocks.items():
                    samples[index].append(block)
            sittings.append(np.array(times))
    found = []
    for index in range(len(models)):
        first, own = (tuple(times[:, column] for times in sittings) for column in (0, index))
        speedup, interval = _compare(first, own, seed) if index else (1.0, (1.0, 1.0))
        found.append(Latency(np.concatenate(samples[index]), speedup, interval, sum(map(len, own)), own))
    return found


def _compare(
    reference: Sequence[NDArray[np.float64]], own: Sequence[NDArray[np.float64]], seed: int
) -> tuple[float, tuple[float, float]]:
    """Median over the rounds of the reference's time over its own, and its interval."""
    ratios = [before / after for before, after in zip(reference, own, strict=True)]
    return float(np.median(np.concatenate(ratios))), bootstrap_interval(ratios, seed)


def bootstrap_interval(ratios: Sequence[NDArray[np.float64]], seed: int) -> tuple[float, float]:
    """95% interval of the median over all rounds, widened on both sides by `RESOLUTION`.

    Args:
        ratios: for each sitting the ratios of its rounds; sittings are drawn first, then rounds within them.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    rounds = np.array([len(one) for one in ratios])
    first, values = np.cumsum(rounds) - rounds, np.concatenate(ratios)
    medians = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = generator.integers(len(ratios), size=len(ratios))
        starts, lengths = (np.repeat(each[drawn], rounds[drawn]) for each in (first, rounds))
        medians[index] = np.median(values[generator.integers(starts, starts + lengths)])
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low * (1 - RESOLUTION)), float(high * (1 + RESOLUTION))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _time_calls(session: ort.InferenceSession, feed: dict[str, NDArray[np.float32]], calls: int) -> NDArray[np.float64]:
    """Milliseconds of each call (calls,)."""
    clock, run, names = time.perf_counter_ns, session.run, [OUTPUT]
    times = [0] * calls
    for index in range(calls):
        start = clock()
        run(names, feed)
        times[index] = clock() - start
    return np.array(times) / 1e6


def _warm_up(session: ort.InferenceSession, feed: dict[str, NDArray[np.float32]], seconds: float) -> float:
    """Run until three blocks in a row are no faster than the best before them; seconds of one call then."""
    best, idle = math.inf, 0
    end = time.perf_counter() + seconds
    calls = 1
    while idle < 3 and time.perf_counter() < end:
        found = _undisturbed(_time_calls(session, feed, calls)) / 1e3
        idle = 0 if found < 0.99 * best else idle + 1
        best = min(best, found)
        calls = max(1, round(5 * BLOCK_SECONDS / best))
    return best


def _calls_of_block(call_seconds: float, seconds: float) -> int:
    """Enough for the timer; for slow models five calls where that leaves 20 rounds in the time."""
    return max(1, math.ceil(BLOCK_SECONDS / call_seconds), min(5, int(seconds / 20 / call_seconds)))


def _undisturbed(values: NDArray[np.float64]) -> float:
    """Mean of the fastest quarter, of the fastest alone where there are few."""
    return float(np.sort(values)[: max(1, len(values) // 4)].mean())
