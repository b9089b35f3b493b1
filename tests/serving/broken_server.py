"""A Triton behind relays that can be cut off or made to hang, and mended."""

import select
import socket
import threading
from contextlib import suppress
from types import TracebackType

from mlites.serving.server import Triton


class BrokenServer:
    """Relays HTTP and gRPC to a server until it is told otherwise."""

    def __init__(self, target: Triton) -> None:
        http, grpc = (_Relay(address.split("//")[-1]) for address in (target.url, target.grpc))
        self._relays = (http, grpc)
        self.triton = Triton(f"http://127.0.0.1:{http.port}", f"127.0.0.1:{grpc.port}")

    def cut(self) -> None:
        """Close every connection; new ones are closed as well."""
        for relay in self._relays:
            relay.set("cut")

    def hang(self) -> None:
        """Take requests and never answer."""
        for relay in self._relays:
            relay.set("hang")

    def mend(self) -> None:
        """Relay again."""
        for relay in self._relays:
            relay.set("relay")

    def __enter__(self) -> "BrokenServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for relay in self._relays:
            relay.close()


class _Relay:
    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target, self._mode, self._open = (host, int(port)), "relay", True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def set(self, mode: str) -> None:
        self._mode = mode
        if mode == "cut":
            for pair in self._pairs:
                for one in pair:
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._open = False
        self.set("cut")
        for thread in list(self._threads):
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._open:
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            near, _ = self._listener.accept()
            if self._mode == "cut":
                near.close()
                continue
            pair = (near, socket.create_connection(self._target))
            self._pairs.append(pair)
            self._threads.append(threading.Thread(target=self._pump, args=pair))
            self._threads[-1].start()

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far, suppress(OSError):
            while self._open:
                for ready in select.select([near, far], [], [], 0.05)[0]:
                    content = ready.recv(1 << 16)
                    if not content:
                        return
                    if self._mode != "hang":
                        other[ready].sendall(content)
