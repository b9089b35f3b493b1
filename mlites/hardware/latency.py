"""Latency of several models side by side: interleaved rounds in one process, ratios pair by pair, with their interval.

Sources: Kalibera & Jones (2013), resample the highest level at which a repetition varies; Mytkowicz et al. (2009),
where memory happens to lie biases a benchmark, so sessions are opened anew many times; Chen & Revels (2016), other
processes only ever add time, so the fastest calls of a block are the model's own; Yuen (1974), a trimmed mean for long
tails.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.hardware.profile import keep_to_cores
from mlites.inference import explain, open_session, read_signature
from mlites.recipe import Hardware

SITTINGS = 16  # least number; in each all sessions are opened anew, as their place in memory alone is worth up to 1%
GROWTH = 1.25  # of the number of sittings between two looks at the result: each look is a chance to stop too early
BLOCK_SECONDS = 0.001  # far above the timer's resolution, short enough that the machine hardly changes between blocks
RESOLUTION = 0.005  # two sessions of one file differ by up to this; more rounds do not average it out
TRIMMED = 0.2  # of the sittings, on either side
RESAMPLES = 1000
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

Decided = Callable[[list["Latency"]], bool]


@dataclass(frozen=True)
class Latency:
    """One model's time for one batch.

    Attributes:
        samples_ms: every call that was timed, in order (calls,).
        calls: how many of them each sitting timed.
        speedup: the first model's time over this one's, trimmed mean over the sittings.
        speedup_interval: 95% bootstrap interval of the speedup, widened by what no number of rounds averages out.
        rounds: pairs of blocks that the speedup rests on.
        sittings: undisturbed time of each round, sitting by sitting (rounds,).
        narrow: whether the interval became as narrow as the profile asks.
        seconds: that went into measuring all models together, loading and warm-up included.
    """

    samples_ms: NDArray[np.float64]
    calls: tuple[int, ...]
    speedup: float
    speedup_interval: tuple[float, float]
    rounds: int
    sittings: tuple[NDArray[np.float64], ...]
    narrow: bool
    seconds: float

    def speedup_over(self, other: "Latency", seed: int = 0) -> tuple[float, tuple[float, float]]:
        """The other model's time over this one's, both of the same measurement, and its interval."""
        return _compare(other.sittings, self.sittings, seed)

    def percentiles_ms(self) -> dict[str, float]:
        """Median, 95th and 99th percentile of all calls."""
        values = np.percentile(self.samples_ms, [100 * share for share in PERCENTILES.values()])
        return {name: float(value) for name, value in zip(PERCENTILES, values, strict=True)}

    def percentile_intervals_ms(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals of the percentiles; what is drawn is whole sittings, as calls follow each other."""
        sittings = np.split(self.samples_ms, np.cumsum(self.calls)[:-1])
        found = percentile_intervals(sittings, list(PERCENTILES.values()), seed)
        return dict(zip(PERCENTILES, found, strict=True))


def measure_latency(
    models: Sequence[Path],
    rows: NDArray[np.float32],
    hardware: Hardware,
    *,
    decided: Decided | None = None,
    seed: int = 0,
) -> list[Latency]:
    """Time models against the first of them until the speedups are known well enough, or time is up.

    A round runs one block of calls of each model, in one order and then in the other, so that a machine that slows down
    slows all alike. A round's ratio compares the fastest quarter of each block, which preempted calls do not reach; the
    percentiles are of all calls. In each sitting the thread stays on the cores where the scheduler put it.

    Args:
        models: ONNX files with one input; the first is what speedups refer to.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        hardware: threads, batch, provider; the least and the most time, and the half width that is narrow enough.
        decided: told the result so far, says whether more precision would change nothing; default: it would not.
        seed: of the bootstrap.

    Returns:
        One for each model, in their order; the first has a speedup of 1.

    Raises:
        InputError: ONNX Runtime refuses a model.
    """
    start, share = time.perf_counter(), len(models) / SITTINGS
    sittings: list[_Sitting] = []
    look = SITTINGS
    with _no_garbage_collection():
        while True:
            backwards = bool(len(sittings) % 2)
            with keep_to_cores(hardware.threads):
                sittings.append(_sit(models, rows, hardware, hardware.seconds * share, backwards))
            seconds = time.perf_counter() - start
            last = seconds >= hardware.most_seconds * len(models)
            if len(sittings) < look and not (last and len(sittings) >= SITTINGS):
                continue
            look = math.ceil(GROWTH * len(sittings))
            found = _summarize(sittings, hardware.precision, seconds, seed)
            if last or (all(one.narrow for one in found) and (decided is None or decided(found))):
                return found


@dataclass(frozen=True)
class _Sitting:
    """Undisturbed milliseconds of each round (rounds, models), and every call of each model."""

    rounds: NDArray[np.float64]
    samples_ms: list[NDArray[np.float64]]


class _Caller:
    """A session, and what it is called with."""

    def __init__(self, path: Path, rows: NDArray[np.float32], hardware: Hardware) -> None:
        self.session = open_session(path, hardware.threads, hardware.provider, hardware.provider_options)
        signature = read_signature(self.session, path)
        if signature.batch not in (None, hardware.batch):
            raise InputError(f"{path}: takes {signature.batch} rows at a time, hardware.batch is {hardware.batch}")
        self.names = [signature.output]
        self.feed = {signature.input: np.resize(rows, (hardware.batch, *rows.shape[1:]))}
        self.calls = 1
        try:
            self.session.run(self.names, self.feed)
        except Exception as error:  # the runtime's errors share no class of their own
            rows_of = f"{hardware.batch} rows of shape {rows.shape[1:]}"
            raise InputError(f"{path}: ONNX Runtime cannot run it on {rows_of}: {explain(error)}") from None

    def time_block(self) -> NDArray[np.float64]:
        """Milliseconds of each call (calls,)."""
        clock, run, names, feed = time.perf_counter_ns, self.session.run, self.names, self.feed
        times = [0] * self.calls
        for index in range(self.calls):
            start = clock()
            run(names, feed)
            times[index] = clock() - start
        return np.array(times) / 1e6

    def warm_up(self, seconds: float) -> None:
        """Run until three blocks in a row are no faster than the best before them; then set the size of a block."""
        best, idle = math.inf, 0
        end = time.perf_counter() + seconds
        while idle < 3 and time.perf_counter() < end:
            found = _undisturbed(self.time_block()) / 1e3
            idle = 0 if found < 0.99 * best else idle + 1
            best = min(best, found)
            self.calls = max(1, round(5 * BLOCK_SECONDS / best))
        # enough for the timer; for slow models five calls where that leaves ten rounds
        self.calls = max(1, math.ceil(BLOCK_SECONDS / best), min(5, int(seconds / 10 / best)))


def _sit(
    models: Sequence[Path], rows: NDArray[np.float32], hardware: Hardware, seconds: float, backwards: bool
) -> _Sitting:
    """Open all sessions and time them for so long; for at least one round, and as long as opening them took."""
    start = time.perf_counter()
    order = list(range(len(models)))[:: -1 if backwards else 1]
    opened = {index: _Caller(models[index], rows, hardware) for index in order}
    loaded = time.perf_counter()
    for caller in opened.values():
        caller.warm_up(seconds / len(models))
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in models]
    now = time.perf_counter()
    end = now + max(seconds, loaded - start)
    while now < end:
        for index in order:
            blocks[index].append(opened[index].time_block())
        order.reverse()
        now = time.perf_counter()
    rounds = np.array([[_undisturbed(block) for block in one] for one in blocks]).T
    return _Sitting(rounds, [np.concatenate(one) for one in blocks])


def _summarize(sittings: Sequence[_Sitting], precision: float, seconds: float, seed: int) -> list[Latency]:
    found = []
    for index in range(len(sittings[0].samples_ms)):
        first, own = (tuple(one.rounds[:, column] for one in sittings) for column in (0, index))
        speedup, (low, high) = _compare(first, own, seed) if index else (1.0, (1.0, 1.0))
        samples = [one.samples_ms[index] for one in sittings]
        found.append(
            Latency(
                samples_ms=np.concatenate(samples),
                calls=tuple(map(len, samples)),
                speedup=speedup,
                speedup_interval=(low, high),
                rounds=sum(map(len, own)),
                sittings=own,
                narrow=high - low <= 2 * precision * speedup,
                seconds=seconds,
            )
        )
    return found


def _compare(
    reference: Sequence[NDArray[np.float64]], own: Sequence[NDArray[np.float64]], seed: int
) -> tuple[float, tuple[float, float]]:
    """The reference's time over its own, and its interval."""
    medians = [float(np.median(before / after)) for before, after in zip(reference, own, strict=True)]
    return bootstrap_interval(np.array(medians), seed)


def bootstrap_interval(ratios: NDArray[np.float64], seed: int) -> tuple[float, tuple[float, float]]:
    """Trimmed mean, and its 95% interval widened on both sides by `RESOLUTION`.

    Args:
        ratios: one for each sitting (sittings,): within a sitting they vary far less than from one to the next.
        seed: of the draws.
    """
    logs = np.log(ratios)
    drawn = np.random.default_rng(seed).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.quantile(_trimmed_mean(logs[drawn]), [0.025, 0.975])
    return (
        float(np.exp(_trimmed_mean(logs))),
        (float(np.exp(low) * (1 - RESOLUTION)), float(np.exp(high) * (1 + RESOLUTION))),
    )


def _trimmed_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis."""
    cut = int(TRIMMED * values.shape[-1])
    kept: NDArray[np.float64] = np.sort(values)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return kept


def percentile_intervals(
    sittings: Sequence[NDArray[np.float64]], shares: Sequence[float], seed: int
) -> list[tuple[float, float]]:
    """95% bootstrap intervals of percentiles over all samples, where whole sittings are drawn.

    Args:
        sittings: samples of each (calls,).
        shares: the percentiles, as fractions.
        seed: of the draws.
    """
    pooled = np.sort(np.concatenate(sittings))
    levels = np.unique([*np.linspace(0, 1, 501), *np.linspace(0.9, 1, 501)])
    grid = np.quantile(pooled, levels, method="higher")
    below = np.array([np.searchsorted(np.sort(one), grid, side="right") for one in sittings], np.float64)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(sittings), [1 / len(sittings)] * len(sittings), size=RESAMPLES)
    counts = drawn @ below
    found = []
    for share in shares:
        at = (counts < share * counts[:, -1:]).sum(axis=1)  # first place of the grid where so many samples lie below
        low, high = np.quantile(grid[at], [0.025, 0.975])
        found.append((float(low), float(high)))
    return found


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


def _undisturbed(values: NDArray[np.float64]) -> float:
    """Mean of the fastest quarter, of the fastest alone where there are few."""
    return float(np.sort(values)[: max(1, len(values) // 4)].mean())
