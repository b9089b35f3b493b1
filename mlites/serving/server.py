"""A running Triton: its two addresses, and the few things that deployment asks of it."""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc
import tritonclient.http
from geventhttpclient.response import HTTPParseError
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlites.errors import InputError
from mlites.inference import INPUT, OUTPUT

LOAD_SECONDS = 300.0
ANSWER_SECONDS = 60.0
READY_SECONDS = 30.0


Ask = Callable[[str, int, NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Counts:
    """A server's own counts for one version.

    Attributes:
        answered: requests.
        failed: requests.
        compute_ns: in the backend, of all executions.
        executions: of batches.
    """

    answered: int
    failed: int
    compute_ns: int
    executions: int


class TritonRefused(Exception):
    """Triton did not do what it was asked, or stopped answering; the message is its own, in one line."""


@dataclass(frozen=True)
class Triton:
    """Where a server listens.

    Attributes:
        url: ``http://host:port`` or ``https://host:port``.
        grpc: ``host:port``, with ``grpcs://`` before it for TLS.
        replicas: ``host:port`` (HTTP) whose name stands for the address of every replica behind ``url``; empty: one.
    """

    url: str
    grpc: str
    replicas: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Triton":
        """From MLITES_TRITON_URL, MLITES_TRITON_GRPC (by default port 8001 of the same host), MLITES_TRITON_REPLICAS.

        Raises:
            InputError: not set, or not an address.
        """
        url = environment.get("MLITES_TRITON_URL", "").rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("MLITES_TRITON_URL must be http://host:port of a Triton; mlites stack up starts one")
        default = f"{'grpcs://' if parts.scheme == 'https' else ''}{parts.hostname}:8001"
        replicas = environment.get("MLITES_TRITON_REPLICAS", "")
        if replicas and not re.fullmatch(r"[^:/]+:\d+", replicas):
            raise InputError(f"MLITES_TRITON_REPLICAS must be host:port, got {replicas[:80]!r}")
        return cls(url, environment.get("MLITES_TRITON_GRPC") or default, replicas)

    def each(self) -> list["Triton"]:
        """Every replica; a service's own address leads to one of them at a time.

        Raises:
            TritonRefused: there is none.
        """
        if not self.replicas:
            return [self]
        host, port = self.replicas.split(":")
        try:
            found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            raise TritonRefused(f"MLITES_TRITON_REPLICAS: {host} has no addresses: {error}") from None
        grpc_port = self.grpc.rsplit(":", 1)[1]
        addresses = sorted({str(one[4][0]) for one in found})
        return [Triton(f"http://{address}:{port}", f"{address}:{grpc_port}") for address in addresses]

    def check(self) -> None:
        """Make sure that it answers, over HTTP and over gRPC.

        Raises:
            InputError: it does not; the message says which address.
        """
        checks: tuple[tuple[str, str, Callable[[], Any]], ...] = (
            ("MLITES_TRITON_URL", self.url, self._http_ready),
            ("MLITES_TRITON_GRPC", self.grpc, self._grpc_ready),
        )
        for name, address, ready in checks:
            try:
                answer = ready()
            except TritonRefused as error:
                answer, reason = False, f" ({error})"
            else:
                reason = ""
            if not answer:
                raise InputError(f"Triton at {address} is not ready{reason}; start it (mlites stack up) or set {name}")

    def load(self, model: str) -> None:
        """Read the model's configuration from the repository and load what it names."""
        with self._http(LOAD_SECONDS) as client:
            client.load_model(model)

    def load_apart(self, model: str, config: dict[str, Any], files: dict[str, bytes]) -> None:
        """Load a model that is not in the repository: everything comes with the request."""
        with self._http(LOAD_SECONDS) as client:
            client.load_model(
                model, config=json.dumps(config), files={f"file:{name}": data for name, data in files.items()}
            )

    def load_with(self, model: str, config: dict[str, Any]) -> None:
        """Load versions that are in the repository, as this configuration says and not the one that lies there."""
        with self._http(LOAD_SECONDS) as client:
            client.load_model(model, config=json.dumps(config))

    def ready_versions(self) -> dict[str, list[int]]:
        """Versions that take requests, ascending, by model."""
        with self._http(ANSWER_SECONDS) as client:
            index = client.get_model_repository_index()
        ready: dict[str, list[int]] = {}
        for one in index:
            if one.get("state") == "READY":
                ready.setdefault(one["name"], []).append(int(one.get("version") or 0))
        return {name: sorted(versions) for name, versions in ready.items()}

    def counts(self, model: str, version: int) -> Counts:
        """What the server has counted for a version since it was loaded."""
        with self._http(ANSWER_SECONDS) as client:
            found = client.get_inference_statistics(model, str(version))["model_stats"][0]
        statistics = found["inference_stats"]
        return Counts(
            int(statistics["success"].get("count", 0)),
            int(statistics["fail"].get("count", 0)),
            int(statistics["compute_infer"].get("ns", 0)),
            int(found.get("execution_count", 0)),
        )

    def unload(self, model: str) -> None:
        """Stop serving a model."""
        with self._http(LOAD_SECONDS) as client:
            client.unload_model(model)

    def wait_until_gone(self, model: str) -> None:
        """Wait until an unloaded model has given back what it held."""
        deadline = time.monotonic() + READY_SECONDS
        with self._http(ANSWER_SECONDS) as client:
            while time.monotonic() < deadline:
                states = [one.get("state") for one in client.get_model_repository_index() if one["name"] == model]
                if "READY" not in states and "UNLOADING" not in states:
                    return
                time.sleep(0.05)

    def wait_until_ready(self, model: str, version: int) -> None:
        """Wait until a version takes requests.

        Raises:
            TritonRefused: it does not in time.
        """
        deadline = time.monotonic() + READY_SECONDS
        with self._http(ANSWER_SECONDS) as client:
            while not client.is_model_ready(model, str(version)):
                if time.monotonic() > deadline:
                    raise TritonRefused(f"version {version} of {model} is not ready after {READY_SECONDS:.0f} s")
                time.sleep(0.05)

    def is_ready(self, model: str, version: int) -> bool:
        """Whether a version takes requests."""
        with self._http(ANSWER_SECONDS) as client:
            return bool(client.is_model_ready(model, str(version)))

    def statistics(self, model: str) -> dict[str, int]:
        """Triton's own counts over all versions of a model: rows answered, and runs of the backend."""
        with self._http(ANSWER_SECONDS) as client:
            versions = client.get_inference_statistics(model)["model_stats"]
        names = ("inference_count", "execution_count")
        return {name: sum(int(one.get(name, 0)) for one in versions) for name in names}

    def infer_http(self, model: str, version: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n, classes) for rows (n, ...), over HTTP."""
        with self.session() as ask:
            return ask(model, version, rows)

    @contextmanager
    def session(self) -> Iterator[Ask]:
        """Yield `infer_http` over one connection that is kept open; for one thread."""

        def ask(model: str, version: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
            with _plain_errors():
                value = tritonclient.http.InferInput(INPUT, list(rows.shape), "FP32")
                value.set_data_from_numpy(rows)
                return np.asarray(client.infer(model, [value], model_version=str(version)).as_numpy(OUTPUT))

        with self._http(ANSWER_SECONDS) as client:
            yield ask

    def infer_grpc(self, model: str, version: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n, classes) for rows (n, ...), over gRPC."""
        with self._grpc() as client:
            value = tritonclient.grpc.InferInput(INPUT, list(rows.shape), "FP32")
            value.set_data_from_numpy(rows)
            answer = client.infer(model, [value], model_version=str(version), client_timeout=ANSWER_SECONDS)
            return np.asarray(answer.as_numpy(OUTPUT))

    def infer_raw(self, model: str, version: int, rows: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Probabilities (n, classes) and classes (n, 1) of raw rows (n, ...)."""
        with self._grpc() as client:
            value = tritonclient.grpc.InferInput("raw", list(rows.shape), np_to_triton_dtype(rows.dtype))
            value.set_data_from_numpy(rows)
            answer = client.infer(model, [value], model_version=str(version), client_timeout=ANSWER_SECONDS)
            return np.asarray(answer.as_numpy("probabilities")), np.asarray(answer.as_numpy("class"))

    def http_client(self, connect_s: float, answer_s: float) -> tritonclient.http.InferenceServerClient:
        """A client over HTTP that waits so long for a connection, and for each piece of an answer; to be closed."""
        parts = urlsplit(self.url)
        return tritonclient.http.InferenceServerClient(
            self.url.removeprefix(f"{parts.scheme}://"),
            ssl=parts.scheme == "https",
            connection_timeout=connect_s,
            network_timeout=answer_s,
        )

    def grpc_client(self, *options: tuple[str, int]) -> tritonclient.grpc.InferenceServerClient:
        """A client over gRPC, with further options of its channel; to be closed."""
        scheme, _, place = self.grpc.rpartition("://")
        # A proxy is for the world; to a server on this machine it is in the way.
        local = place.rsplit(":", 1)[0] in ("127.0.0.1", "localhost", "[::1]")
        return tritonclient.grpc.InferenceServerClient(
            place,
            ssl=scheme in ("grpcs", "https"),
            channel_args=[
                ("grpc.enable_http_proxy", int(not local)),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                *options,
            ],
        )

    def _http_ready(self) -> bool:
        with self._http(10) as client:
            return bool(client.is_server_ready())

    def _grpc_ready(self) -> bool:
        with self._grpc() as client:
            return bool(client.is_server_ready(client_timeout=10))

    @contextmanager
    def _http(self, timeout_s: float) -> Iterator[tritonclient.http.InferenceServerClient]:
        with _plain_errors(), self.http_client(10, timeout_s) as client:
            yield client

    @contextmanager
    def _grpc(self) -> Iterator[tritonclient.grpc.InferenceServerClient]:
        with _plain_errors(), self.grpc_client() as client:
            yield client


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn the clients' many errors into one."""
    try:
        yield
    except InferenceServerException as error:
        raise TritonRefused(" ".join(str(error.message()).split())[:500]) from None
    except (OSError, HTTPParseError) as error:  # refused, reset, no such host, timed out, closed in the middle
        raise TritonRefused(f"no connection: {error}") from None
