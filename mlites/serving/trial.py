"""A release judged beside the one in service: the same requests to both, in turn, at the expected rate."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlites.recipe.promotion import Promotion
from mlites.serving.release import Fetched
from mlites.serving.server import Ask, Counts, Triton, TritonRefused
from mlites.serving.smoke import Comparison, WrongAnswers, smoke_test

WORKERS = 8
ATTEMPTS = 3  # another process may take a core for a while; who is slower each time is slow
WITHIN_NOISE_MS = 0.1
WITHIN_NOISE_BYTES = 24 << 20  # allocators give back late


class Unfit(Exception):
    """A release must not be served; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A release as a server has it loaded."""

    name: str
    version: int
    fetched: Fetched


@dataclass
class Observed:
    """How one subject answered.

    Attributes:
        latencies_ms: of the requests that were answered, as the caller saw them.
        compute_ms: of one execution in the backend, as the server counted.
        faults: what was wrong with the other requests.
    """

    latencies_ms: list[float] = field(default_factory=list)
    compute_ms: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def p95_ms(self) -> float:
        return float(np.percentile(self.latencies_ms, 95)) if self.latencies_ms else float("inf")

    @property
    def quick_ms(self) -> float:
        """The faster quartile, which others who want the cores disturb least."""
        return float(np.percentile(self.latencies_ms, 25)) if self.latencies_ms else float("inf")


def judge_answers(triton: Triton, candidate: Subject, stable: Subject | None) -> str:
    """Golden parity, classes against labels, and agreement with the release in service; says what was found.

    Raises:
        Unfit: the candidate is worse than its recipe allows.
    """
    golden, limits = candidate.fetched.golden, candidate.fetched.release.serving.promotion
    compared = parity(triton, candidate)
    named = _classes(candidate.fetched, golden.logits)
    found = f"{compared.samples} golden rows, largest difference {compared.max_abs_difference:.1e}"
    right = None if golden.labels is None else np.array([a == b for a, b in zip(named, golden.labels, strict=True)])
    promised = candidate.fetched.release.metrics.get("accuracy")
    if right is not None:
        found += f", {right.mean():.0%} as labelled"
        if isinstance(promised, float):
            spread = 3 * (promised * (1 - promised) / len(right)) ** 0.5 + 0.05
            if right.mean() < promised - spread:
                raise Unfit(
                    f"it names the labelled class for {right.mean():.0%} of the golden rows, and promises "
                    f"{promised:.0%}: is the order of its classes that of its logits?"
                )
    if stable is None:
        return found
    rows = _as_other_sees(golden.rows, candidate.fetched, stable.fetched)
    theirs = _classes(stable.fetched, _ask_all(triton, stable, rows))
    agreement = float(np.mean([a == b for a, b in zip(named, theirs, strict=True)]))
    if agreement < limits.agreement:
        raise Unfit(
            f"it names the same class as the release in service for {agreement:.0%} of the golden rows, "
            f"at least {limits.agreement:.0%} is asked"
        )
    if right is not None and golden.labels is not None:
        before = np.array([a == b for a, b in zip(theirs, golden.labels, strict=True)])
        lost, won = int((before & ~right).sum()), int((~before & right).sum())
        drop = 100 * (lost - won) / len(right)
        if drop > limits.accuracy_drop_points and lost - won > 2 * (lost + won) ** 0.5:
            raise Unfit(
                f"{right.mean():.0%} of the golden rows are named as labelled, {before.mean():.0%} by the release in "
                f"service; {limits.accuracy_drop_points:g} points less are allowed"
            )
    return f"{found}, {agreement:.0%} as the release in service"


def parity(triton: Triton, subject: Subject) -> Comparison:
    """Compare the served answers to the golden ones, over both protocols.

    Raises:
        Unfit: they differ.
    """
    golden, release = subject.fetched.golden, subject.fetched.release
    try:
        return smoke_test(
            triton, subject.name, subject.version, golden.rows, golden.logits, release.serving.max_batch_size
        )
    except WrongAnswers as error:
        raise Unfit(str(error)) from None


def judge_speed(triton: Triton, candidate: Subject, stable: Subject | None, seconds: float) -> str:
    """Error rate and latency under the expected requests, beside the release in service; says what was found.

    Raises:
        Unfit: requests fail, or the candidate is slower than its recipe allows, each time it is tried.
    """
    limits = candidate.fetched.release.serving.promotion
    for _ in range(ATTEMPTS):
        subjects = [candidate, stable] if stable else [candidate]
        observed = observe(triton, subjects, limits, seconds)
        mine = observed[0]
        if mine.faults:
            asked = len(mine.faults) + len(mine.latencies_ms)
            raise Unfit(f"{len(mine.faults)} of {asked} requests fail: {mine.faults[0]}")
        fault = _too_slow(mine, observed[1] if stable else None, limits)
        if fault is None:
            beside = f", {observed[1].p95_ms:.2f} ms in service" if stable else ""
            return f"p95 {mine.p95_ms:.2f} ms{beside}, {len(mine.latencies_ms)} requests"
    raise Unfit(f"{fault}, tried {ATTEMPTS} times")


def judge_memory(mine: int, theirs: float | None, limits: Promotion) -> str:
    """Memory beside the release in service, in bytes; says what was found.

    Raises:
        Unfit: it takes more than its recipe allows.
    """
    mib = 1 << 20
    if limits.memory_mib is not None and mine > limits.memory_mib * mib:
        raise Unfit(f"it takes {mine / mib:.0f} MiB of memory; {limits.memory_mib:g} are allowed")
    if theirs is None:
        return f"{mine / mib:.0f} MiB"
    if mine > limits.larger * theirs and mine - theirs > WITHIN_NOISE_BYTES:
        raise Unfit(
            f"it takes {mine / mib:.0f} MiB of memory, the release in service {theirs / mib:.0f}; "
            f"{limits.larger:g} times that is allowed"
        )
    return f"{mine / mib:.0f} MiB, {theirs / mib:.0f} in service"


def observe(triton: Triton, subjects: Sequence[Subject], limits: Promotion, seconds: float) -> list[Observed]:
    """Send golden rows to each subject at the expected rate, from several threads, and check each answer.

    Args:
        triton: the server.
        subjects: each gets every request, turn about first and last.
        limits: rate and rows of the requests.
        seconds: how long.
    """
    results = [Observed() for _ in subjects]
    before = [triton.counts(one.name, one.version) for one in subjects]
    local = threading.local()
    with ExitStack() as sessions, ThreadPoolExecutor(WORKERS) as pool:
        guard = threading.Lock()

        def ask(number: int) -> None:
            """One subject after the other, or the slow one's work would be in the other's way."""
            if not hasattr(local, "ask"):
                with guard:
                    local.ask = sessions.enter_context(triton.session())
            order = range(len(subjects)) if number % 2 == 0 else reversed(range(len(subjects)))
            for place in order:
                _ask_once(local.ask, subjects[place], number, limits.rows, results[place])

        start = time.perf_counter()
        for number in range(max(1, round(limits.requests_per_second * seconds))):
            wait = start + number / limits.requests_per_second - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            pool.submit(ask, number)
        pool.shutdown()
    for result, subject, counted in zip(results, subjects, before, strict=True):
        result.compute_ms = _compute_ms(counted, triton.counts(subject.name, subject.version))
    return results


def _ask_once(ask: Ask, subject: Subject, number: int, count: int, result: Observed) -> None:
    golden = subject.fetched.golden
    rows = np.arange(number * count, (number + 1) * count) % len(golden.rows)
    start = time.perf_counter()
    try:
        logits = ask(subject.name, subject.version, np.ascontiguousarray(golden.rows[rows]))
    except TritonRefused as error:
        result.faults.append(str(error))
        return
    result.latencies_ms.append(1000 * (time.perf_counter() - start))
    if logits.shape != golden.logits[rows].shape or not np.isfinite(logits).all():
        result.faults.append("an answer is not a row of finite logits for each row asked")


def _too_slow(mine: Observed, theirs: Observed | None, limits: Promotion) -> str | None:
    if limits.p95_ms is not None and mine.p95_ms > limits.p95_ms:
        return f"p95 is {mine.p95_ms:.2f} ms; {limits.p95_ms:g} are allowed"
    if theirs is None:
        return None
    for what, one, other in (
        ("a request", mine.quick_ms, theirs.quick_ms),
        ("one execution", mine.compute_ms, theirs.compute_ms),
    ):
        if one > limits.slower * other and one - other > WITHIN_NOISE_MS:
            return f"{what} takes {one:.2f} ms, {other:.2f} in service; {limits.slower:g} times that is allowed"
    return None


def _compute_ms(before: Counts, after: Counts) -> float:
    runs = after.executions - before.executions
    return (after.compute_ns - before.compute_ns) / runs / 1e6 if runs > 0 else 0.0


def _ask_all(triton: Triton, subject: Subject, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    size = subject.fetched.release.serving.max_batch_size
    with triton.session() as ask:
        parts = [
            ask(subject.name, subject.version, np.ascontiguousarray(rows[start : start + size]))
            for start in range(0, len(rows), size)
        ]
    return np.concatenate(parts)


def _classes(fetched: Fetched, logits: NDArray[np.float32]) -> list[str]:
    return [fetched.release.classes[one] for one in logits.argmax(1)]


def _as_other_sees(rows: NDArray[np.float32], mine: Fetched, other: Fetched) -> NDArray[np.float32]:
    """Preprocessed rows (n, channels, ...) as the other release preprocesses the same raw rows."""
    if mine.release.preprocessing == other.release.preprocessing:
        return rows

    def numbers(fetched: Fetched, key: str) -> NDArray[np.float64]:
        return np.asarray(fetched.release.preprocessing[key], np.float64).reshape(1, -1, *[1] * (rows.ndim - 2))

    raw = (rows * numbers(mine, "std") + numbers(mine, "mean")) / mine.release.preprocessing["scale"]
    seen = (raw * other.release.preprocessing["scale"] - numbers(other, "mean")) / numbers(other, "std")
    return np.asarray(seen, np.float32)
