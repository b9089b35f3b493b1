"""Serving settings found, not guessed: try them on a real Triton under the expected requests, and take the best.

One kind of setting is varied after the other, the others kept at the best so far, which takes the sum of the choices
instead of their product. The finalists are measured again, in turns, so that a busy moment decides nothing.
"""

import dataclasses
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.models.card import read_card
from mlites.recipe import Budget, Hardware, Serving, Sweep
from mlites.recipe.hardware import Arrival
from mlites.serving.repository import configuration, configuration_json
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.traffic import Answered, send_traffic

FORMAT = "mlites-sweep/1"
FINALISTS = 2
MEASUREMENTS = 2  # of each setting and load
ALIKE = 0.03  # a throughput that is lower by less is as good: the setting that takes less of the machine wins
KEEPS_UP = 0.95  # of the requests that independent callers send


@dataclass(frozen=True)
class Setting:
    """What the sweep chooses.

    Attributes:
        max_batch_size: rows that Triton runs together at most.
        max_queue_delay_us: how long it waits for them, microseconds.
        instances: of the model.
        threads: of one instance's session.
    """

    max_batch_size: int
    max_queue_delay_us: int
    instances: int
    threads: int

    def serving(self, serving: Serving) -> Serving:
        """A recipe's section with these in place of its own."""
        chosen = dataclasses.asdict(self)
        del chosen["threads"]
        return serving.model_copy(update={**chosen, "sweep": None})


@dataclass
class Load:
    """What was found under a number of callers, over all measurements.

    Attributes:
        callers: at once; None for independent ones.
        answers: of each measurement.
    """

    callers: int | None
    answers: list[Answered]

    def figures(self, rows: int) -> dict[str, Any]:
        """Of the measurement that answered soonest: what else the machine did in the others only took time away."""
        best = min(self.answers, key=lambda one: one.response_ms.mean() if len(one.response_ms) else float("inf"))
        took, errors = best.response_ms, sum(one.errors for one in self.answers)
        p50, p95, p99 = map(float, np.percentile(took, [50, 95, 99])) if len(took) else (None, None, None)
        return {
            "callers": self.callers,
            "rows_per_second": rows * best.per_second,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "errors": errors,
        }


@dataclass
class Tried:
    """A setting and its loads.

    Attributes:
        setting: as tried.
        loads: none where Triton did not load it.
        mean_batch: rows that Triton ran together on average.
        error: why it was not loaded.
    """

    setting: Setting
    loads: list[Load]
    mean_batch: float | None = None
    error: str | None = None


def sweep_recipe(
    triton: Triton, folder: Path, serving: Serving, hardware: Hardware, budget: Budget, rows: NDArray[np.float32]
) -> dict[str, Any]:
    """Sweep as a recipe says: its requests, its cores, its limit.

    Args:
        triton: a server without callers.
        folder: ``model.onnx`` and ``model.json``.
        serving: with or without a ``sweep`` of its own.
        hardware: says how requests come and how many rows they have.
        budget: its p95_ms counts where neither the sweep nor the promotion names a limit.
        rows: real inputs (n, ...), repeated or cut to fill a request.
    """
    sweep = serving.sweep or Sweep()
    return sweep_serving(
        triton,
        folder,
        serving,
        sweep,
        hardware.arrival,
        np.resize(rows, (hardware.batch, *rows.shape[1:])),
        threads=hardware.threads,
        cores=hardware.cores or len(os.sched_getaffinity(0)),
        p95_ms=sweep.p95_ms or serving.promotion.p95_ms or budget.p95_ms,
    )


def sweep_serving(
    triton: Triton,
    folder: Path,
    serving: Serving,
    sweep: Sweep,
    arrival: Arrival,
    rows: NDArray[np.float32],
    *,
    threads: int,
    cores: int,
    p95_ms: float | None,
) -> dict[str, Any]:
    """Measure settings and rank them.

    Args:
        triton: a server to load copies of the model in; its other models' callers would notice.
        folder: ``model.onnx`` and ``model.json``.
        serving: the settings to begin at.
        sweep: what to try.
        arrival: how requests come.
        rows: of one request (n, ...), as the model takes them.
        threads: of a session, to begin at.
        cores: settings whose instances would together run more threads are left out.
        p95_ms: largest 95th percentile of the response time; None where it does not matter.

    Returns:
        The sweep document (``mlites-sweep/1``): ``settings``, best first, and the ``reason``.

    Raises:
        InputError: a request has more rows than any setting takes, or Triton loads none of them.
    """
    if len(rows) > max((serving.max_batch_size, *sweep.max_batch_sizes)):
        raise InputError(
            f"serving.sweep: a request has {len(rows)} rows (hardware.batch); none of max_batch_sizes takes as many"
        )
    loads = list(sweep.callers) if arrival.rate_per_second is None else [None]
    best = Setting(serving.max_batch_size, serving.max_queue_delay_us, serving.instances, threads)
    tried: dict[Setting, Tried] = {}

    def measure(setting: Setting) -> None:
        if setting in tried or setting.max_batch_size < len(rows) or setting.instances * setting.threads > cores:
            return
        tried[setting] = _try(triton, folder, serving, setting, [Load(one, []) for one in loads], rows, arrival, sweep)

    def ranked() -> list[tuple[Tried, dict[str, Any]]]:
        return rank([one for one in tried.values() if not one.error], len(rows), arrival, p95_ms)

    choices: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("max_batch_size", sweep.max_batch_sizes),
        ("instances", sweep.instances),
        ("threads", sweep.threads),
        ("max_queue_delay_us", sweep.max_queue_delays_us),
    )
    measure(best)
    for name, values in choices:
        for value in values:
            measure(dataclasses.replace(best, **{name: value}))
        if order := ranked():
            best = order[0][0].setting
    if not ranked():
        raise InputError(
            "serving.sweep: no setting is left that Triton loads"
            + "".join(f"; {one.error}" for one in tried.values())[:400]
        )
    finalists = [one for one, _ in ranked()[:FINALISTS]]
    if len(finalists) > 1:
        _measure_in_turns(triton, folder, serving, finalists, rows, arrival, sweep)
    failed = [{**dataclasses.asdict(one.setting), "error": one.error} for one in tried.values() if one.error]
    settings = [
        {**dataclasses.asdict(one.setting), "mean_batch": one.mean_batch, "error": None, **figures}
        for one, figures in ranked()
    ]
    return {
        "format": FORMAT,
        "arrival": arrival.model_dump(mode="json"),
        "rows_per_request": len(rows),
        "p95_ms": p95_ms,
        "seconds": sweep.seconds,
        "settings": [*settings, *failed],
        "reason": _reason(settings, p95_ms, arrival),
    }


def settle_on(document: dict[str, Any] | None, serving: Serving, threads: int) -> tuple[Serving, int]:
    """The section and the threads to serve with: the best of a sweep document, or as given where there is none."""
    if document is None:
        return serving, threads
    best = document["settings"][0]
    setting = Setting(**{field.name: best[field.name] for field in dataclasses.fields(Setting)})
    return setting.serving(serving), setting.threads


def _try(
    triton: Triton,
    folder: Path,
    serving: Serving,
    setting: Setting,
    loads: list[Load],
    rows: NDArray[np.float32],
    arrival: Arrival,
    sweep: Sweep,
) -> Tried:
    tried = Tried(setting, loads)
    try:
        with _loaded(triton, folder, serving, setting) as copy:
            before = triton.statistics(copy)
            for load in loads * MEASUREMENTS:
                load.answers.append(send_traffic(triton, copy, 1, rows, arrival, load.callers or 1, sweep.seconds))
            after = triton.statistics(copy)
    except TritonRefused as error:
        return Tried(setting, [], error=str(error))
    runs = after["execution_count"] - before["execution_count"]
    tried.mean_batch = (after["inference_count"] - before["inference_count"]) / runs if runs else None
    return tried


def _measure_in_turns(
    triton: Triton,
    folder: Path,
    serving: Serving,
    finalists: list[Tried],
    rows: NDArray[np.float32],
    arrival: Arrival,
    sweep: Sweep,
) -> None:
    """Measure the finalists again, under the loads that decide, all of them loaded at once."""
    with ExitStack() as stack:
        copies = [stack.enter_context(_loaded(triton, folder, serving, one.setting)) for one in finalists]
        for _ in range(MEASUREMENTS):
            for one, copy in zip(finalists, copies, strict=True):
                for load in one.loads:
                    load.answers.append(send_traffic(triton, copy, 1, rows, arrival, load.callers or 1, sweep.seconds))


@contextmanager
def _loaded(triton: Triton, folder: Path, serving: Serving, setting: Setting) -> Iterator[str]:
    """A copy of the model under a name that no caller knows."""
    copy = f"sweep-{uuid.uuid4().hex[:12]}"
    text = configuration(copy, read_card(folder), setting.serving(serving), [1], setting.threads)
    try:
        triton.load_apart(copy, configuration_json(text), {"1/model.onnx": (folder / "model.onnx").read_bytes()})
        triton.wait_until_ready(copy, 1)
        yield copy
    finally:
        with suppress(TritonRefused):
            triton.unload(copy)


def _score(tried: Tried, rows: int, arrival: Arrival, p95_ms: float | None) -> dict[str, Any]:
    """The loads' figures, and those of the load that counts: the fastest within the limit, else the quickest."""
    loads = []
    for load in tried.loads:
        found = load.figures(rows)
        wanted = rows * (arrival.rate_per_second or 0)
        found["meets"] = bool(
            found["p95_ms"] is not None
            and not found["errors"]
            and found["rows_per_second"] >= KEEPS_UP * wanted
            and (p95_ms is None or found["p95_ms"] <= p95_ms)
        )
        loads.append(found)
    within = [one for one in loads if one["meets"]]
    if within:
        decisive = max(within, key=lambda one: float(one["rows_per_second"]))
    else:
        decisive = min(loads, key=lambda one: float("inf") if one["p95_ms"] is None else float(one["p95_ms"]))
    return {**decisive, "loads": loads}


def _better_first(one: tuple[Tried, dict[str, Any]]) -> tuple[bool, float, float]:
    """Within the limit before beyond it; then by throughput, or by response time where none is within."""
    figures = one[1]
    p95 = float("inf") if figures["p95_ms"] is None else float(figures["p95_ms"])
    return (not figures["meets"], -figures["rows_per_second"] if figures["meets"] else p95, p95)


def rank(
    tried: Sequence[Tried], rows: int, arrival: Arrival, p95_ms: float | None
) -> list[tuple[Tried, dict[str, Any]]]:
    """Settings with their figures, the best first; of those as fast as the fastest, the one that takes fewer threads.

    Args:
        tried: settings that Triton loaded.
        rows: of a request.
        arrival: how requests came.
        p95_ms: limit of the response time, if there is one.
    """
    scored = [(one, _score(one, rows, arrival, p95_ms)) for one in tried]
    ranked = sorted(scored, key=_better_first)
    if not ranked or not ranked[0][1]["meets"]:
        return ranked
    top = ranked[0][1]

    def alike(one: tuple[Tried, dict[str, Any]]) -> bool:
        return bool(one[1]["meets"]) and one[1]["rows_per_second"] >= (1 - ALIKE) * top["rows_per_second"]

    equals = sorted(
        filter(alike, ranked),
        key=lambda one: (one[0].setting.instances * one[0].setting.threads, float(one[1]["p95_ms"])),
    )
    return equals + [one for one in ranked if not alike(one)]


def _reason(settings: list[dict[str, Any]], p95_ms: float | None, arrival: Arrival) -> str:
    best = settings[0]
    who = f"{best['callers']} callers" if arrival.rate_per_second is None else f"{arrival.rate_per_second:g} requests/s"
    found = f"{best['rows_per_second']:.0f} rows/s under {who}"
    if best["p95_ms"] is None:
        return "no setting answers these requests in time"
    if not best["meets"]:
        limit = "" if p95_ms is None else f" within {p95_ms:g} ms"
        return f"no setting answers these requests{limit}; this one is the quickest: p95 {best['p95_ms']:.2f} ms"
    limit = "" if p95_ms is None else f", within {p95_ms:g} ms"
    return f"the highest throughput of {len(settings)} settings: {found}, p95 {best['p95_ms']:.2f} ms{limit}"
