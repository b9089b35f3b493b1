"""mlites watch in a process of its own: live on a terminal, lines elsewhere, until it is interrupted."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlites.serving.server import Triton
from mlites.storage import Store
from tests.serving.served import Network, serve, withdraw


@pytest.fixture
def command(in_stack: dict[str, str], tmp_path: Path) -> Iterator[list[str]]:
    store, triton, network = Store.open(in_stack["MLITES_STORE"]), Triton.from_environment(), Network("table")
    name = f"w-{uuid.uuid4().hex[:8]}"
    serve(store, triton, network.folder(tmp_path), name, network.normalised(network.raw(4)).astype(np.float32))
    yield [sys.executable, "-c", "from pipelines.cli import main; main()", "watch", name, "--every", "0.2"]
    withdraw(store, triton, name)


def read_until(descriptor: int, count: int, words: bytes) -> bytes:
    """What comes until words have come so often, or a minute is over."""
    content, deadline = b"", time.monotonic() + 60
    while content.count(words) < count and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                content += os.read(descriptor, 1 << 16)
            except OSError:  # the terminal's other end is closed
                break
    return content


def test_a_terminal_shows_one_picture_that_changes_and_a_pipe_a_line_for_each_look(command: list[str]) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    terminal = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    piped = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert piped.stdout is not None
    try:
        drawn = read_until(ours, 2, b"all is well")
        lines = read_until(piped.stdout.fileno(), 2, b"\n").decode().splitlines()
    finally:
        for process in (terminal, piped):
            process.send_signal(signal.SIGINT)
            process.wait(20)
        piped.stdout.close()
        os.close(ours)
    assert drawn.count(b"all is well") >= 2 and b"production: version 1" in drawn and b"\x1b[" in drawn
    assert len(lines) >= 2 and all("production version 1" in line and line.endswith("well") for line in lines)
    assert (terminal.returncode, piped.returncode) == (130, 130)
