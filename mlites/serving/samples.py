"""The sample log: a share of the predictions, written to S3 in the background and read back by ``mlites watch``.

Objects lie below ``samples/<model>/<hour>/``, each with the rows of some seconds. Callers never wait: what would make
the log longer than its bound is dropped and counted.
"""

import atexit
import base64
import json
import random
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.files import canonical_json
from mlites.serving.predictions import Predictions
from mlites.storage import PreconditionFailed, Store

FORMAT = "mlites-samples/1"
HOUR = "%Y%m%dT%H"
FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Sample:
    """One logged prediction.

    Attributes:
        at: seconds since 1970.
        version: that answered.
        digest: of its release.
        label: the most probable class.
        probability: of that class.
        milliseconds: of the call in which it was asked for.
    """

    at: float
    version: int
    digest: str
    label: str
    probability: float
    milliseconds: float


class SampleLog:
    """Collects predictions and writes them in batches, in a thread of its own.

    Attributes:
        written: rows that lie in the store.
        dropped: rows that came while the log was full.
        failures: attempts to write that failed; their rows were kept for the next.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        *,
        share: float = 1.0,
        inputs: bool = False,
        every_s: float = 5.0,
        most_waiting: int = 10_000,
        most_in_object: int = 5_000,
    ) -> None:
        """Start the thread.

        Args:
            store: takes the log.
            model: whose predictions come.
            share: of the rows, in [0, 1].
            inputs: write the raw rows as well; they may be personal data, so only who asks for it gets it.
            every_s: pause between two objects.
            most_waiting: rows in memory at most.
            most_in_object: rows written at once at most.

        Raises:
            InputError: a share outside its range.
        """
        if not 0 <= share <= 1:
            raise InputError(f"share of the sample log must be 0 to 1, got {share:g}")
        self.written, self.dropped, self.failures = 0, 0, 0
        self._store, self._model, self._share, self._inputs = store, model, share, inputs
        self._every_s, self._most_waiting, self._most_in_object = every_s, most_waiting, most_in_object
        self._waiting: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._random = random.Random()  # noqa: S311
        self._thread = threading.Thread(target=self._run, name=f"samples of {model}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def add(self, predictions: Predictions, raw: NDArray[Any]) -> None:
        """Take a share of the rows; returns at once, whatever the store does.

        Args:
            predictions: n rows.
            raw: (n, ...), what was asked.
        """
        at, labels = time.time(), predictions.labels
        for row, label in enumerate(labels):
            if self._share < 1 and self._random.random() >= self._share:
                continue
            if len(self._waiting) >= self._most_waiting or self._closed:
                self.dropped += 1
                continue
            sample = {
                "at": round(at, 3),
                "version": predictions.version,
                "digest": predictions.digest,
                "label": label,
                "probability": round(float(predictions.probabilities[row].max()), 6),
                "milliseconds": round(predictions.milliseconds, 3),
            }
            if self._inputs:
                sample["input"] = _encode(raw[row])
            self._waiting.append(sample)

    def flush(self) -> bool:
        """Write what waits, now; False where the store did not take it."""
        with self._lock:  # one writer at a time
            while self._waiting:
                rows = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most_in_object))]
                now = datetime.now(UTC)
                key = (
                    f"samples/{self._model}/{now.strftime(HOUR)}/{int(now.timestamp() * 1000)}-{uuid.uuid4().hex}.json"
                )
                document = {"format": FORMAT, "model": self._model, "share": self._share, "rows": rows}
                try:
                    self._store.put(key, canonical_json(document))
                except (InputError, OSError, PreconditionFailed):
                    self.failures += 1
                    kept = rows[: max(0, self._most_waiting - len(self._waiting))]
                    self.dropped += len(rows) - len(kept)
                    self._waiting.extendleft(reversed(kept))
                    return False
                self.written += len(rows)
        return True

    def close(self) -> None:
        """Write what waits, for a few seconds at most, and end the thread; what comes later is dropped."""
        self._closed = True
        self._wake.set()
        self._thread.join(FAREWELL_SECONDS)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while not self._wake.wait(self._every_s):
            self.flush()
        self.flush()


class SampleReader:
    """Reads the log of one model again and again; each object is fetched once, for it never changes."""

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._model = store, model
        self._known: dict[str, list[Sample]] = {}

    def read(self, since: datetime, until: datetime) -> list[Sample]:
        """Logged predictions of a time, in the order of their objects; a damaged object is left out."""
        keys = []
        hour = since.replace(minute=0, second=0, microsecond=0)
        while hour <= until:
            for key in self._store.keys(f"samples/{self._model}/{hour.strftime(HOUR)}/"):
                stamp = key.rsplit("/", 1)[1].split("-")[0]
                if stamp.isdecimal() and int(stamp) / 1000 >= since.timestamp():
                    keys.append(key)
            hour += timedelta(hours=1)
        self._known = {key: self._known.get(key) or _rows(self._store, key) for key in keys}
        found = (one for samples in self._known.values() for one in samples)
        return [one for one in found if since.timestamp() <= one.at <= until.timestamp()]


def _rows(store: Store, key: str) -> list[Sample]:
    try:
        document = json.loads(store.get(key))
        return [
            Sample(
                float(row["at"]),
                int(row["version"]),
                str(row["digest"]),
                str(row["label"]),
                float(row["probability"]),
                float(row["milliseconds"]),
            )
            for row in document["rows"]
        ]
    except (InputError, ValueError, KeyError, TypeError):
        return []


def _encode(row: NDArray[Any]) -> dict[str, Any]:
    content = base64.b64encode(np.ascontiguousarray(row).tobytes()).decode()
    return {"dtype": str(row.dtype), "shape": list(row.shape), "base64": content}
