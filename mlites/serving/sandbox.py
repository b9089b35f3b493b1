"""A Triton in which a release is tried before callers can meet it: a process of its own, or a server of a cluster."""

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlites import lifeline
from mlites.errors import InputError
from mlites.serving.server import Triton, TritonRefused
from mlites.stack import process, triton, triton_environment

START_SECONDS = 60.0
START_ATTEMPTS = 3


@dataclass(frozen=True)
class Sandbox:
    """A server without callers.

    Attributes:
        triton: where it listens.
        mark: of its processes, where they are on this machine.
    """

    triton: Triton
    mark: str | None = None

    def memory(self) -> dict[int, int] | None:
        """Bytes that each of its processes holds, shared ones by its share; None for a server elsewhere."""
        return {pid: _proportional_bytes(pid) for pid in process.find(self.mark)} if self.mark else None


@contextmanager
def sandbox(environment: Mapping[str, str] = os.environ) -> Iterator[Sandbox]:
    """The server that MLITES_SANDBOX_URL names, or one started for the occasion, which ends with the body.

    The latter also ends when this process does, however that comes.

    Raises:
        InputError: the named server does not answer, or none can be started here.
    """
    if url := environment.get("MLITES_SANDBOX_URL"):
        named = {"MLITES_TRITON_URL": url, "MLITES_TRITON_GRPC": environment.get("MLITES_SANDBOX_GRPC", "")}
        server = Triton.from_environment(named)
        try:
            server.check()
        except InputError as error:
            raise InputError(f"the sandbox (MLITES_SANDBOX_URL) does not answer: {error}") from None
        yield Sandbox(server)
        return
    folder = Path(tempfile.mkdtemp(prefix="mlites-sandbox-"))
    mark = f"sandbox:{uuid.uuid4().hex}"
    try:
        yield Sandbox(_start(folder, mark, environment), mark)
    finally:
        process.stop(mark, patience_s=0)  # it holds nothing that is worth a farewell
        triton.clear(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, mark: str, environment: Mapping[str, str]) -> Triton:
    server = triton_environment.prepare(lambda message: None)
    triton.install_backends(folder, server)
    repository = folder / "repository"
    repository.mkdir()
    log = folder / "triton.log"
    for _ in range(START_ATTEMPTS):
        ports = process.free_ports(dict.fromkeys(triton.PORTS, 0))
        command = [sys.executable, "-P", lifeline.__file__, str(os.getpid())]
        command += triton.command(folder, server, ports, str(repository))
        process.start(mark, command, triton.variables(server, {}), log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.leader(mark) is not None:
            if triton.answers(ports):
                if not process.owns(mark, set(ports.values())):
                    break
                return Triton(f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}")
            time.sleep(0.05)
        process.stop(mark, patience_s=0)  # another took one of the ports, or it hangs
    lines = log.read_text(errors="replace").splitlines()
    raise TritonRefused(f"the sandbox does not start: {lines[-1][:300] if lines else 'it wrote nothing'}")


def _proportional_bytes(pid: int) -> int:
    """Pss of a process: a page that three share counts a third."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)
