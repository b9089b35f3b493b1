"""A proxy before an S3 server that does to chosen requests what networks and servers do at times."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fault = Literal["503", "slow", "truncated", "lost", "reset", "skewed"]
Choose = Callable[[str, str, int], "Fault | None"]  # method, path, number of the request
HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class FaultyS3:
    """The proxy; ``choose`` may be replaced at any time."""

    url: str
    choose: Choose = lambda method, path, number: None
    seen: list[tuple[str, str, Fault | None]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def decide(self, method: str, path: str) -> Fault | None:
        with self.guard:
            fault = self.choose(method, path, len(self.seen))
            self.seen.append((method, path, fault))
            return fault


@contextmanager
def faulty_s3(endpoint: str, slow_seconds: float = 1.0) -> Iterator[FaultyS3]:
    """Listen on loopback and pass on to the endpoint."""
    parts = urlsplit(endpoint)
    host, port = str(parts.hostname), int(parts.port or 80)
    proxy = FaultyS3("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Expect", "").lower() == "100-continue":
                pass  # http.server has answered it
            fault = proxy.decide(self.command, self.path)
            if fault == "reset":
                return self._break(reset=True)
            if fault == "503":
                content = b"<Error><Code>SlowDown</Code><Message>too much</Message></Error>"
                self.send_response(503)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                return None
            if fault == "slow":
                time.sleep(slow_seconds)
            connection = http.client.HTTPConnection(host, port, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in HOP | {"expect"}:
                        connection.putheader(name, value)  # Host too: the signature covers it
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault == "lost":
                return self._break()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() in HOP | {"content-length", "date", "server"}:
                    continue
                if fault == "skewed" and name == "Last-Modified":
                    value = formatdate(parsedate_to_datetime(value).timestamp() + 86400, usegmt=True)
                self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command == "HEAD":
                return None
            if fault == "truncated" and len(content) > 1:
                self.wfile.write(content[: len(content) // 2])
                return self._break()
            self.wfile.write(content)
            return None

        def _break(self, reset: bool = False) -> None:
            with suppress(OSError):
                self.wfile.flush()
                if reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RDWR) if not reset else self.connection.close()
            self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

        def handle(self) -> None:
            with suppress(OSError):  # the caller, or we, hung up
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *arguments: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
