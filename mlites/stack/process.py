"""Servers that outlive their starter, known by a mark in their environment: a process id in a file may be another's."""

import os
import select
import signal
import socket
import time
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path

MARK = "MLITES_STACK_SERVER"
LISTEN = "0A"  # a socket's state in /proc/net/tcp
# The shell replaces itself, so the server has the id that posix_spawn returns and a folder that is not the caller's.
IN_FOLDER = 'cd "$0" && exec "$@"'


def start(mark: str, command: list[str], variables: dict[str, str], log: Path) -> None:
    """Start a server in a session of its own, its output in the log and the log's folder as its folder.

    The log of an earlier start is kept beside it, as ``<name>.1``. Returns when the server can be found by its mark, or
    has ended.
    """
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", IN_FOLDER, str(log.parent), *command],
        {**variables, MARK: mark},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these, and a child would inherit that
    )
    # While a program takes the place of another, its command reads as empty, and then its environment.
    while not os.waitpid(pid, os.WNOHANG)[0] and not (_bears(Path(f"/proc/{pid}"), mark) and _is_beyond_shell(pid)):
        time.sleep(0.001)


def find(mark: str) -> list[int]:
    """Ids of the live processes of a server: itself and its children. They belong to this user."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _bears(path, mark)]


def leader(mark: str) -> int | None:
    """Id of the server itself, None if it is not running."""
    for pid in find(mark):
        with suppress(ProcessLookupError):
            if os.getsid(pid) == pid:
                return pid
    return None


def owns(mark: str, ports: Collection[int]) -> bool:
    """Whether those who listen on these TCP ports are processes of a server, and of no other.

    A port that was free when it was chosen may be another's by the time the server starts, and that one answers too.
    """
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):  # no IPv6 here
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == LISTEN and int(local.rpartition(":")[2], 16) in ports:
                    listening.add(f"socket:[{inode}]")
    held = set()
    for pid in find(mark):
        with suppress(OSError):  # it ended
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    held.add(str(file.readlink()))
    return bool(listening) and listening <= held


def stop(mark: str, patience_s: float = 20.0) -> bool:
    """End every process of a server and wait for it: politely first, then by force. True if there was one."""
    found = False
    deadline = time.monotonic() + patience_s
    while pids := find(mark):
        found = True
        head = leader(mark)
        polite = head is not None and time.monotonic() < deadline
        with ExitStack() as stack:
            watched = []
            for pid in pids:
                with suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    stack.callback(os.close, handle)
                    if not _bears(Path(f"/proc/{pid}"), mark):  # the id went to another meanwhile
                        continue
                    watched.append(handle)
                    if not polite:
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                    elif pid == head:
                        signal.pidfd_send_signal(handle, signal.SIGTERM)
            _wait_for_end(watched, max(1.0, deadline - time.monotonic()))
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return found


def free_ports(wanted: dict[str, int]) -> dict[str, int]:
    """For each name the wanted port of 127.0.0.1 if nobody listens there, else (or for 0) one the kernel picks."""
    ports = {}
    with ExitStack() as stack:
        for name, port in wanted.items():
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            ports[name] = int(probe.getsockname()[1])
    return ports


def _bears(process: Path, mark: str) -> bool:
    try:
        environment = (process / "environ").read_bytes()
    except OSError:  # ended, or another user's
        return False
    return f"\0{MARK}={mark}\0".encode() in b"\0" + environment


def _is_beyond_shell(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return bool(command) and IN_FOLDER.encode() not in command


def _wait_for_end(handles: list[int], timeout_s: float) -> None:
    poll, left = select.poll(), set(handles)
    for handle in handles:
        poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while left and (remaining := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(remaining * 1000):
            poll.unregister(handle)
            left.discard(handle)
