"""Ask a served model in its own terms: raw rows in, classes with probabilities out.

What the model takes and what its answers mean stand in the manifest of its release, which the channel names together
with the version that serves it. Requests that meet a passing fault are sent again, after pauses that grow.

Source: Brooker (2015), Exponential Backoff and Jitter, AWS Architecture Blog.
"""

import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlites import stack
from mlites.data.dataset import Preprocessing
from mlites.data.raw import to_images, to_table
from mlites.errors import InputError
from mlites.inference import INPUT, OUTPUT
from mlites.serving.channel import Channel, Pointer, read_channel
from mlites.serving.connection import Connection, GrpcConnection, HttpConnection, NotAnswered
from mlites.serving.postprocessing import softmax
from mlites.serving.predictions import Predictions
from mlites.serving.raw import PROBABILITIES, RAW, raw_name
from mlites.serving.release import Release, read_release
from mlites.serving.samples import SampleLog
from mlites.serving.server import Triton
from mlites.storage import DEFAULT_STORE, Store

CONNECTIONS: dict[str, type[GrpcConnection] | type[HttpConnection]] = {"grpc": GrpcConnection, "http": HttpConnection}
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0


class PredictionFailed(Exception):
    """No answer within the deadline and the attempts, or a refusal; the message is one line."""


@dataclass(frozen=True)
class _Target:
    """A channel's release, and where it is served."""

    pointer: Pointer
    release: Release


class Client:
    """Asks one model; safe to use from several threads, and to be closed by ``with``."""

    def __init__(
        self,
        model: str,
        *,
        channel: Channel = "production",
        store: Store | None = None,
        triton: Triton | None = None,
        protocol: Literal["grpc", "http"] = "grpc",
        preprocessing: Literal["client", "server"] = "client",
        deadline_s: float = 10.0,
        attempts: int = 6,
        refresh_s: float = 1.0,
        samples: SampleLog | None = None,
    ) -> None:
        """Read which release the channel serves.

        Args:
            model: name of the releases.
            channel: whose version answers; while a release is tried as production's canary, production's callers give
                it its share of the calls.
            store: holds releases and channels; default: that of the environment, or of the embedded stack.
            triton: that serves them; default: likewise.
            protocol: to ask by.
            preprocessing: "server" sends raw rows, where the recipe has ``serving.preprocessing: server``.
            deadline_s: time for one call, all its attempts included.
            attempts: of one request, at most.
            refresh_s: age at which the channel is read again; sooner where its version is gone.
            samples: takes a share of the predictions; closed with the client.

        Raises:
            InputError: nothing was ever promoted to the channel, or no server at the given addresses.
        """
        self.model, self.channel = model, channel
        self._store = store or store_from_environment()
        self._connection: Connection = CONNECTIONS[protocol](triton or Triton.from_environment(servers()))
        self._on_server = preprocessing == "server"
        self._deadline_s, self._attempts, self._refresh_s = deadline_s, attempts, refresh_s
        self._samples = samples
        self._lock = threading.Lock()
        self._releases: dict[str, Release] = {}
        self._targets = self._read_targets()
        self._read_at = time.monotonic()

    @property
    def release(self) -> Release:
        """What the channel serves, as last read."""
        return self._targets[0].release

    def predict(self, rows: NDArray[Any], *, deadline_s: float | None = None) -> Predictions:
        """Classes of raw rows, in pieces where they are more than the model takes at once.

        Args:
            rows: images (n, channels, height, width), (n, height, width, channels) or (n, height, width), or a table
                (n, features), as the data that the model was trained on.
            deadline_s: in place of the client's.

        Raises:
            InputError: rows that the model does not take.
            PredictionFailed: no answer in time, or a refusal.
        """
        begin = time.monotonic()
        deadline = begin + (self._deadline_s if deadline_s is None else deadline_s)
        budget = _Budget(self._attempts, deadline)
        fresh = False
        while True:
            target = self._choose_target(fresh)
            raw = check_rows(rows, target.release)
            try:
                probabilities = self._ask(target, raw, budget)
                break
            except NotAnswered as error:  # the version is gone: where do callers go now?
                budget.pause(error, self.model)
                fresh = True
        predictions = Predictions(
            self.model,
            target.pointer.channel,
            target.pointer.version,
            target.pointer.digest,
            target.release.classes,
            probabilities,
            1000 * (time.monotonic() - begin),
        )
        if self._samples is not None:
            self._samples.add(predictions, raw)
        return predictions

    def close(self) -> None:
        """End the connections, and write what the sample log still holds."""
        self._connection.close()
        if self._samples is not None:
            self._samples.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, target: _Target, raw: NDArray[Any], budget: "_Budget") -> NDArray[np.float32]:
        """Probabilities (n, classes), all from the target's version.

        Raises:
            NotAnswered: it is gone.
            PredictionFailed: anything else, at last.
        """
        name, wanted = target.pointer.served_as, str(target.pointer.version)
        if self._on_server:
            name, tensor, output, rows = raw_name(name), RAW, PROBABILITIES, raw
        else:
            tensor, output = INPUT, OUTPUT
            rows = Preprocessing.from_json(target.release.preprocessing).apply(raw)
        size = target.release.serving.max_batch_size
        answers = []
        for start in range(0, len(rows), size):
            answers.append(self._ask_piece(name, wanted, tensor, rows[start : start + size], output, budget))
        values = np.concatenate(answers)
        if values.shape != (len(raw), len(target.release.classes)) or not np.isfinite(values).all():
            raise PredictionFailed(f"{name} version {wanted} answers with NaN, infinity or shape {values.shape}")
        return values if self._on_server else softmax(values)

    def _ask_piece(
        self,
        name: str,
        version: str,
        tensor: str,
        rows: NDArray[Any],
        output: str,
        budget: "_Budget",
    ) -> NDArray[Any]:
        while True:
            try:
                return self._connection.ask(name, version, tensor, rows, output, budget.remaining(name))
            except NotAnswered as error:
                if error.fault == "gone":
                    raise
                if error.fault == "refused":
                    raise PredictionFailed(f"{name} refuses the request: {error}") from None
                budget.pause(error, name)

    def _choose_target(self, fresh: bool) -> _Target:
        with self._lock:
            if fresh or time.monotonic() - self._read_at > self._refresh_s:
                try:
                    self._targets = self._read_targets()
                except (InputError, OSError):
                    if fresh:
                        raise
                    # the store is away, but what it said before is served still, or Triton will tell
                self._read_at = time.monotonic()
            targets = self._targets
        if len(targets) > 1 and random.random() < targets[1].pointer.share:  # noqa: S311
            return targets[1]
        return targets[0]

    def _read_targets(self) -> list[_Target]:
        """The channel's own, and for production's callers the canary that takes a share of the calls."""
        pointer = read_channel(self._store, self.model, self.channel)
        if pointer is None:
            raise InputError(
                f"{self.model} has no release in channel {self.channel}; promote one: mlites promote {self.model} "
                f"--to {self.channel}"
            )
        pointers = [pointer]
        if self.channel == "production":
            canary = read_channel(self._store, self.model, "canary")
            if canary is not None and 0 < canary.share < 1 and canary.digest != pointer.digest:
                pointers.append(canary)
        for one in pointers:
            if one.digest not in self._releases:
                self._releases[one.digest] = read_release(self._store, self.model, one.digest)
        return [_Target(one, self._releases[one.digest]) for one in pointers]


class _Budget:
    """What is left of one call: time and attempts."""

    def __init__(self, attempts: int, deadline: float) -> None:
        self._left, self._deadline = attempts, deadline
        self._pauses = _growing_pauses()

    def remaining(self, name: str) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise PredictionFailed(f"{name}: the deadline is over")
        return left

    def pause(self, error: NotAnswered, name: str) -> None:
        """Wait before the next attempt.

        Raises:
            PredictionFailed: there is none.
        """
        self._left -= 1
        pause = next(self._pauses)
        if self._left <= 0:
            raise PredictionFailed(f"{name} does not answer, at last: {error}") from None
        if time.monotonic() + pause >= self._deadline:
            raise PredictionFailed(f"{name} does not answer within the deadline: {error}") from None
        time.sleep(pause)


def _growing_pauses() -> Iterator[float]:
    """Random pauses from a range that doubles, so that callers who fail together do not come back together."""
    longest = FIRST_PAUSE_SECONDS
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311
        longest = min(2 * longest, LONGEST_PAUSE_SECONDS)


def check_rows(rows: NDArray[Any], release: Release) -> NDArray[Any]:
    """Raw rows as the model's preprocessing takes them: uint8 images (n, c, h, w), or a float32 table.

    Raises:
        InputError: another shape, or values out of range.
    """
    place = f"rows for {release.model}"
    array = np.asarray(rows)
    shape = release.input_shape
    if len(shape) == 3:
        scale = float(release.preprocessing["scale"])
        if array.dtype.kind == "f" and not math.isclose(scale, 1 / 255) and array.size and np.isfinite(array).all():
            whole = bool((array == np.rint(array)).all())  # pixels are not 0 to 255 here, but 0 to 1 / scale
            within = array.min() >= 0 and array.max() <= 1
            array = np.rint(array / scale) if within and not whole else array
            array = array.astype(np.int64) if (array == np.rint(array)).all() else array
        array = to_images(array, place)
    else:
        array = to_table(array, place)
        if not np.isfinite(array).all():
            raise InputError(f"{place}: NaN or infinity; every feature must be a number")
    if array.shape[1:] != shape:
        raise InputError(f"{place}: shape {array.shape[1:]} of one row; it takes {shape}")
    return array


def servers() -> Mapping[str, str]:
    """The variables that lead to the servers: the environment's where it names a Triton, else the embedded stack's."""
    return os.environ if os.environ.get("MLITES_TRITON_URL") else stack.environment()


def store_from_environment() -> Store:
    """The store of the servers that callers use."""
    environment = servers()
    return Store(environment.get("MLITES_STORE") or DEFAULT_STORE, environment)
