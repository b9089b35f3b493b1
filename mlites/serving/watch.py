"""What a served model does: its latency and failures as Triton counts them, and the drift of what it predicts.

Beyond a limit an alarm is raised; one for drift may start a command, once for each release and time, whoever watches.
"""

import json
import os
import shlex
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from mlites.errors import InputError
from mlites.files import canonical_json
from mlites.serving.channel import Channel, Pointer, read_channel
from mlites.serving.drift import PredictionDrift, measure_prediction_drift
from mlites.serving.metrics import Reading, Served, between, metrics_urls, read_metrics
from mlites.serving.raw import raw_name
from mlites.serving.release import read_release
from mlites.serving.samples import SampleReader
from mlites.serving.server import TritonRefused
from mlites.storage import MissingObject, PreconditionFailed, Store

FORMAT = "mlites-watch/1"


@dataclass(frozen=True)
class Limits:
    """Beyond which an alarm is raised.

    Attributes:
        psi: population stability index of the predicted classes.
        p95_ms: 95th percentile of the latency that Triton counts, or else of the logged calls; None: as the
            release promises.
        failures: share of the requests.
        least_rows: logged predictions below which drift is not judged.
    """

    psi: float = 0.2
    p95_ms: float | None = None
    failures: float = 0.01
    least_rows: int = 100


@dataclass(frozen=True)
class Sampled:
    """What the sample log holds of a version.

    Attributes:
        rows: logged.
        minutes: looked back.
        labels: rows of each predicted class.
        mean_probability: of the predicted class.
        p50_ms: of the logged calls, as their callers saw them.
        p95_ms: likewise.
    """

    rows: int
    minutes: float
    labels: dict[str, int]
    mean_probability: float | None
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True)
class Sight:
    """One look at a channel.

    Attributes:
        at: when.
        pointer: of the channel.
        served: by Triton's counters, None where it does not answer.
        raw: the same of the requests with raw rows, None where none are taken.
        fault: why it does not.
        sampled: from the sample log.
        drift: against the release's reference, None with too few rows or without one.
        judgeable: the release has a reference.
        alarms: what is beyond its limit, in words; "drift" comes first where it is.
    """

    at: datetime
    pointer: Pointer
    served: Served | None
    raw: Served | None
    fault: str | None
    sampled: Sampled
    drift: PredictionDrift | None
    judgeable: bool
    alarms: tuple[str, ...]

    @property
    def drifted(self) -> bool:
        return any(one.startswith("drift") for one in self.alarms)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "at": self.at.isoformat(),
            "model": self.pointer.model,
            "channel": self.pointer.channel,
            "version": self.pointer.version,
            "release": self.pointer.digest,
            "since": self.pointer.at.isoformat(),
            "served": self.served.to_json() if self.served else None,
            "served_raw": self.raw.to_json() if self.raw else None,
            "fault": self.fault,
            "sampled": asdict(self.sampled),
            "drift": self.drift.to_json() if self.drift else None,
            "alarms": list(self.alarms),
        }


class Watcher:
    """Looks at one channel again and again."""

    def __init__(
        self, store: Store, model: str, channel: Channel = "production", *, minutes: float = 60, limits: Limits
    ) -> None:
        """Nothing is read yet.

        Args:
            store: holds channels, releases and the sample log.
            model: its name.
            channel: whose version is looked at.
            minutes: of the sample log to look back.
            limits: for the alarms.
        """
        self._store, self._model, self._channel = store, model, channel
        self._minutes, self._limits = minutes, limits
        self._log = SampleReader(store, model)
        self._before: dict[tuple[str, int], tuple[Reading, float]] = {}

    def look(self) -> Sight:
        """Read everything once; counters are compared with those of the look before.

        Raises:
            InputError: nothing was ever promoted to the channel.
        """
        pointer = read_channel(self._store, self._model, self._channel)
        if pointer is None:
            raise InputError(
                f"{self._model} has no release in channel {self._channel}; promote one: mlites promote {self._model}"
            )
        release = read_release(self._store, self._model, pointer.digest)
        served = raw = fault = None
        try:
            served = self._served(pointer.served_as, pointer.version)
            if release.serving.preprocessing == "server":
                raw = self._served(raw_name(pointer.served_as), pointer.version)
        except TritonRefused as error:
            fault = str(error)
        sampled = self._sampled(pointer)
        drift = None
        if release.reference and sampled.rows >= max(self._limits.least_rows, 1):
            drift = measure_prediction_drift(release.reference, sampled.labels)
        p95_ms = self._limits.p95_ms or release.serving.promotion.p95_ms
        alarms = tuple(_alarms(replace(self._limits, p95_ms=p95_ms), served, fault, sampled, drift))
        return Sight(datetime.now(UTC), pointer, served, raw, fault, sampled, drift, bool(release.reference), alarms)

    def _served(self, name: str, version: int) -> Served:
        now, at = read_metrics(metrics_urls(), name, version), time.monotonic()
        before, earlier = self._before.get((name, version), (None, at))
        self._before[(name, version)] = (now, at)
        return between(before, now, at - earlier if before else None)

    def _sampled(self, pointer: Pointer) -> Sampled:
        until = datetime.now(UTC)
        since = max(until - timedelta(minutes=self._minutes), pointer.at - timedelta(minutes=1))
        found = [one for one in self._log.read(since, until) if one.digest == pointer.digest]
        labels: dict[str, int] = {}
        for one in found:
            labels[one.label] = labels.get(one.label, 0) + 1
        took = [one.milliseconds for one in found]
        return Sampled(
            rows=len(found),
            minutes=self._minutes,
            labels=dict(sorted(labels.items())),
            mean_probability=float(np.mean([one.probability for one in found])) if found else None,
            p50_ms=float(np.percentile(took, 50)) if found else None,
            p95_ms=float(np.percentile(took, 95)) if found else None,
        )


def _alarms(
    limits: Limits, served: Served | None, fault: str | None, sampled: Sampled, drift: PredictionDrift | None
) -> list[str]:
    found = []
    if drift and drift.exceeds(limits.psi):
        found.append(
            f"drift of the predicted classes: PSI {drift.psi:.3f} over {drift.rows} rows; at most {limits.psi:g} is "
            f"right, and chance brings {drift.chance:.3f} once in a thousand"
        )
    if fault:
        found.append(f"not answering: {fault}")
    if served and served.failure_share > limits.failures:
        found.append(
            f"failures: {served.failures} of {served.requests + served.failures} requests; at most "
            f"{limits.failures:.1%} is right"
        )
    p95 = served.p95_ms if served and served.p95_ms is not None else sampled.p95_ms
    if limits.p95_ms is not None and p95 is not None and p95 > limits.p95_ms:
        found.append(f"latency: p95 {p95:.2f} ms; at most {limits.p95_ms:g} ms is right")
    return found


def take_turn(store: Store, sight: Sight, again_after: timedelta) -> bool:
    """Whether the drift that was seen is this watcher's to act on: once for a release and time, among all watchers.

    Args:
        store: holds the note of the last time.
        sight: with drift.
        again_after: when the same release may be acted on again.
    """
    key = f"watch/{sight.pointer.model}/{sight.pointer.channel}.json"
    note = canonical_json({"release": sight.pointer.digest, "at": sight.at.isoformat()})
    try:
        try:
            content, etag = store.get_with_etag(key)
        except MissingObject:
            store.put(key, note, if_absent=True)
            return True
        last = json.loads(content)
        recent = sight.at - datetime.fromisoformat(last["at"]) < again_after
        if last["release"] == sight.pointer.digest and recent:
            return False
        store.put(key, note, if_match=etag)
        return True
    except PreconditionFailed:  # another watcher was first
        return False


def start_command(command: str, sight: Sight) -> "subprocess.Popen[bytes]":
    """Run a user's command, with what was seen in the variable MLITES_WATCH; no shell is between.

    Raises:
        InputError: it cannot be started.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--on-drift {command!r}: {error}") from None
    if not words:
        raise InputError("--on-drift: an empty command")
    environment = {**os.environ, "MLITES_WATCH": json.dumps(sight.to_json())}
    try:
        return subprocess.Popen(words, env=environment)
    except OSError as error:
        raise InputError(f"--on-drift: cannot start {words[0]!r}: {error.strerror}") from None
