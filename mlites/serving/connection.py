"""Open connections to a Triton over HTTP or gRPC: each request with its own time limit, and what the errors mean."""

import re
import threading
from typing import Any, Literal, Protocol

import gevent
import numpy as np
import tritonclient.grpc
import tritonclient.http
from geventhttpclient.response import HTTPParseError
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlites.serving.server import Triton

CONNECT_SECONDS = 5.0
REFUSED = {"400", "401", "403", "413", "StatusCode.INVALID_ARGUMENT", "StatusCode.UNAUTHENTICATED"}
REFUSED |= {"StatusCode.PERMISSION_DENIED", "StatusCode.UNIMPLEMENTED", "StatusCode.RESOURCE_EXHAUSTED"}
GONE = re.compile(r"unknown model|not at ready state|has no available versions|is unloading")

Fault = Literal["gone", "refused", "passing"]


class NotAnswered(Exception):
    """A request that Triton did not answer; the message is its own, in one line.

    Attributes:
        fault: "gone": the version is not served; "refused": asking again would not help; "passing": it might.
    """

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class Connection(Protocol):
    """One way to ask."""

    def ask(
        self, model: str, version: str, tensor: str, rows: NDArray[Any], output: str, timeout_s: float
    ) -> NDArray[Any]:
        """One output of a version, asked for by number.

        Raises:
            NotAnswered: no answer within the time, or a refusal.
        """

    def close(self) -> None:
        """Let go of the server; a later request connects again."""


class GrpcConnection:
    """Safe to use from several threads."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._client: tritonclient.grpc.InferenceServerClient | None = None
        self._lock = threading.Lock()

    def ask(
        self, model: str, version: str, tensor: str, rows: NDArray[Any], output: str, timeout_s: float
    ) -> NDArray[Any]:
        with self._lock:
            client = self._client = self._client or self._open()
        try:
            answer = client.infer(
                model,
                [_input(tritonclient.grpc, tensor, rows)],
                model_version=version,
                outputs=[tritonclient.grpc.InferRequestedOutput(output)],
                client_timeout=timeout_s,
            )
        except InferenceServerException as error:
            raise _fault(error) from None
        return np.asarray(answer.as_numpy(output))

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> tritonclient.grpc.InferenceServerClient:
        return self._triton.grpc_client(
            ("grpc.initial_reconnect_backoff_ms", 50),  # the caller waits between its attempts; once is enough
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.use_local_subchannel_pool", 1),
        )


class HttpConnection:
    """Safe to use from several threads: each has a client of its own."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._own = threading.local()
        self._clients: list[tritonclient.http.InferenceServerClient] = []
        self._lock = threading.Lock()

    def ask(
        self, model: str, version: str, tensor: str, rows: NDArray[Any], output: str, timeout_s: float
    ) -> NDArray[Any]:
        client = getattr(self._own, "client", None) or self._open()
        wanted = [tritonclient.http.InferRequestedOutput(output, binary_data=True)]
        inputs = [_input(tritonclient.http, tensor, rows)]
        try:
            # the client's own limit is for one piece of the answer; a server that sends a byte a second passes it
            with gevent.Timeout(timeout_s):
                answer = client.infer(model, inputs, model_version=version, outputs=wanted)
        except InferenceServerException as error:
            raise _fault(error) from None
        except gevent.Timeout:
            self._forget(client)
            raise NotAnswered(f"no answer within {timeout_s:.3g} s", "passing") from None
        except (
            OSError,
            ValueError,
            HTTPParseError,
        ) as error:  # refused, reset, broken off, or not what a Triton writes
            self._forget(client)
            raise NotAnswered(f"no connection: {error}", "passing") from None
        return np.asarray(answer.as_numpy(output))

    def close(self) -> None:
        with self._lock:
            clients, self._clients = self._clients, []
        self._own = threading.local()
        for client in clients:
            client.close()

    def _open(self) -> tritonclient.http.InferenceServerClient:
        client = self._triton.http_client(CONNECT_SECONDS, 3600.0)
        self._own.client = client
        with self._lock:
            self._clients.append(client)
        return client

    def _forget(self, client: tritonclient.http.InferenceServerClient) -> None:
        self._own.client = None
        with self._lock:
            if client in self._clients:
                self._clients.remove(client)
        client.close()


def _input(module: Any, tensor: str, rows: NDArray[Any]) -> Any:
    value = module.InferInput(tensor, list(rows.shape), np_to_triton_dtype(rows.dtype))
    value.set_data_from_numpy(np.ascontiguousarray(rows))
    return value


def _fault(error: InferenceServerException) -> NotAnswered:
    message = " ".join(str(error.message()).split())[:500]
    status = str(error.status() or "")
    if status in ("404", "StatusCode.NOT_FOUND") or GONE.search(message):
        return NotAnswered(message, "gone")
    return NotAnswered(message, "refused" if status in REFUSED else "passing")
