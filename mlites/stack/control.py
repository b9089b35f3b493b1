"""Bring the embedded stack up and down, tell how it is, and hand out the variables that lead to it.

Everything lies in ``$MLITES_HOME/stack``: ``keys.json`` (mode 0600), ``servers.json`` (ports, and what each server was
started with), the logs, and SeaweedFS's data in ``s3/``. What runs is never read from a file: a server is known by the
mark in its environment, so neither a crash nor a reused process id can mislead.
"""

import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlites.errors import InputError
from mlites.files import write_atomically
from mlites.stack import process, seaweedfs, triton, triton_environment

READY_SECONDS = 60.0
START_ATTEMPTS = 3
# Triton unloads its models. SeaweedFS closes S3 at once, then waits for idle connections; what it holds is on disk.
PATIENCE_SECONDS = {"triton": 10.0, "seaweedfs": 4.0}
KEYS = ("access_key", "secret_key", "volume_key", "filer_key")
DEFAULT_STORE = "s3://mlites"


class StackFailed(Exception):
    """A server of the embedded stack did not start; the message says where its log is."""


@dataclass(frozen=True)
class Server:
    """How one server of the stack is.

    Attributes:
        name: ``seaweedfs`` or ``triton``.
        embedded: ours; False where the user's environment names another.
        ready: it answers requests now.
        url: where, None if it was never started.
        pid: process of an embedded server that runs.
        log: what an embedded server has written.
    """

    name: str
    embedded: bool
    ready: bool
    url: str | None
    pid: int | None
    log: Path | None

    def __str__(self) -> str:
        state = "ready" if self.ready else "running, not ready" if self.pid else "not answering"
        if not self.embedded:
            return f"{self.name}: {state} at {self.url} (yours, named by the environment)"
        if not self.pid:
            return f"{self.name}: stopped, log {self.log}"
        return f"{self.name}: {state} at {self.url}, process {self.pid}, log {self.log}"


@dataclass(frozen=True)
class _Plan:
    """One server to be started: what it needs, and a digest of all of it."""

    name: str
    wanted: dict[str, int]
    choose_ports: Callable[[dict[str, int]], dict[str, int]]
    command: Callable[[dict[str, int]], list[str]]
    variables: dict[str, str]
    answers: Callable[[dict[str, int]], bool]
    before: Callable[[dict[str, int]], None]

    @property
    def digest(self) -> str:
        described = [self.command(dict.fromkeys(self.wanted, 0)), self.variables]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def up(say: Callable[[str], None] = lambda message: None) -> dict[str, str]:
    """Start what does not run yet and return ``environment()``; quick when all runs.

    A server that the user names by MLITES_S3_ENDPOINT or MLITES_TRITON_URL is not started.

    Args:
        say: told what takes longer than a moment.

    Raises:
        InputError: a program or a package is missing, or the user's own S3 does not answer.
        StackFailed: a server does not start.
    """
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(folder):
        record = _read(folder / "servers.json")
        s3, url = _users_s3(record), _users_triton(record)  # asked first: ours may move to other ports
        if s3 is None:
            _ensure(folder, record, _seaweedfs_plan(folder), say)
        if url is None:
            variables = _s3_variables(folder, record, s3)
            environment_folder = triton_environment.prepare(say)
            _provide_repository(folder, record, variables)
            _ensure(folder, record, _triton_plan(folder, environment_folder, variables), say)
    return _environment(folder, record, s3, url)


def down() -> list[str]:
    """End the servers that ``up`` started and wait until they are gone; data stay. Returns the names of those ended."""
    folder = _folder()
    if not folder.exists():
        return []
    with _lock(folder):
        return [name for name in ("triton", "seaweedfs") if _end(folder, _read(folder / "servers.json"), name)]


def status() -> list[Server]:
    """How SeaweedFS and Triton are, in that order."""
    folder = _folder()
    record = _read(folder / "servers.json")
    servers = []
    for name, theirs, port, check in (
        ("seaweedfs", _users_s3(record), "s3.port", seaweedfs.answers),
        ("triton", _users_triton(record), "http", triton.answers),
    ):
        if theirs is not None:
            servers.append(Server(name, False, _listens(theirs), theirs, None, None))
            continue
        ports = record.get(name, {}).get("ports", {})
        pid = process.leader(_mark(folder, name))
        url = f"http://127.0.0.1:{ports[port]}" if port in ports else None
        ready = bool(pid and url and check(ports))
        servers.append(Server(name, True, ready, url, pid, folder / f"{name}.log"))
    return servers


def environment() -> dict[str, str]:
    """The variables that lead to the stack, for a caller's or a child's environment.

    MLITES_S3_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, MLITES_STORE (s3://bucket),
    MLITES_TRITON_URL (http://host:port) and MLITES_TRITON_GRPC (host:port). With the user's own S3, keys are there only
    if the user's environment has them.

    Raises:
        InputError: the stack was never started.
    """
    folder = _folder()
    record = _read(folder / "servers.json")
    return _environment(folder, record, _users_s3(record), _users_triton(record))


def _environment(folder: Path, record: dict[str, Any], s3: str | None, url: str | None) -> dict[str, str]:
    """The same, with the user's own S3 and Triton, None where they are the embedded ones."""
    variables = _s3_variables(folder, record, s3)
    if url is not None:
        grpc = os.environ.get("MLITES_TRITON_GRPC") or f"{urlsplit(url).hostname}:8001"
        metrics = {name: os.environ[name] for name in ("MLITES_TRITON_METRICS",) if os.environ.get(name)}
        return {**variables, "MLITES_TRITON_URL": url, "MLITES_TRITON_GRPC": grpc, **metrics}
    ports = _ports(record, "triton")
    return {
        **variables,
        "MLITES_TRITON_URL": f"http://127.0.0.1:{ports['http']}",
        "MLITES_TRITON_GRPC": f"127.0.0.1:{ports['grpc']}",
        "MLITES_TRITON_METRICS": f"http://127.0.0.1:{ports['metrics']}/metrics",
    }


def _folder() -> Path:
    return Path(os.environ.get("MLITES_HOME") or ".mlites").resolve() / "stack"


def _mark(folder: Path, name: str) -> str:
    return f"{name}:{folder}"


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or damaged, for all of it can be made anew."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _keys(folder: Path) -> dict[str, str]:
    path = folder / "keys.json"
    keys = _read(path)
    if not all(isinstance(keys.get(name), str) for name in KEYS):
        keys = {name: secrets.token_hex(10 if name == "access_key" else 24) for name in KEYS}
        write_atomically(path, json.dumps(keys), mode=0o600)
    return keys


def _ports(record: dict[str, Any], name: str) -> dict[str, int]:
    try:
        return {key: int(port) for key, port in record[name]["ports"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("the embedded stack is not up; start it with: mlites stack up") from None


def _users_s3(record: dict[str, Any]) -> str | None:
    """MLITES_S3_ENDPOINT, unless it is our own, exported by ``environment``."""
    given = os.environ.get("MLITES_S3_ENDPOINT", "").rstrip("/")
    ours = record.get("seaweedfs", {}).get("ports", {}).get("s3.port")
    return given if given and given != f"http://127.0.0.1:{ours}" else None


def _users_triton(record: dict[str, Any]) -> str | None:
    given = os.environ.get("MLITES_TRITON_URL", "").rstrip("/")
    ours = record.get("triton", {}).get("ports", {}).get("http")
    if not given or given == f"http://127.0.0.1:{ours}":
        return None
    if urlsplit(given).scheme not in ("http", "https") or not urlsplit(given).hostname:
        raise InputError(f"MLITES_TRITON_URL must be http://host:port or https://host:port, got {given[:200]!r}")
    return given


def _s3_variables(folder: Path, record: dict[str, Any], theirs: str | None) -> dict[str, str]:
    store = os.environ.get("MLITES_STORE") or DEFAULT_STORE
    if theirs is not None:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        given = {name: os.environ[name] for name in names if os.environ.get(name)}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {**given, "MLITES_S3_ENDPOINT": theirs, "AWS_REGION": region, "MLITES_STORE": store}
    keys = _keys(folder)
    return {
        "MLITES_S3_ENDPOINT": f"http://127.0.0.1:{_ports(record, 'seaweedfs')['s3.port']}",
        "AWS_ACCESS_KEY_ID": keys["access_key"],
        "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
        "AWS_REGION": "us-east-1",
        "MLITES_STORE": store,
    }


def _seaweedfs_plan(folder: Path) -> _Plan:
    return _Plan(
        "seaweedfs",
        seaweedfs.PORTS,
        seaweedfs.choose_ports,
        lambda ports: seaweedfs.command(folder, ports),
        seaweedfs.variables(folder, _keys(folder)),
        seaweedfs.answers,
        lambda ports: seaweedfs.clear(folder, ports),
    )


def _triton_plan(folder: Path, environment_folder: Path, s3: Mapping[str, str]) -> _Plan:
    repository = triton.repository_url(s3["MLITES_STORE"], s3["MLITES_S3_ENDPOINT"])
    access = {name: value for name, value in s3.items() if name.startswith("AWS_")}
    access["AWS_DEFAULT_REGION"] = s3["AWS_REGION"]  # the name that Triton reads
    access["MLITES_BACKEND"] = hashlib.sha256(triton.BACKEND.read_bytes()).hexdigest()  # changed code: restart

    def before(ports: dict[str, int]) -> None:
        from mlites.serving.versions import agree_all
        from mlites.storage import Store

        agree_all(Store(s3["MLITES_STORE"], s3))  # a start serves what the channels point to
        triton.clear(folder)
        triton.install_backends(folder, environment_folder)

    return _Plan(
        "triton",
        triton.PORTS,
        process.free_ports,
        lambda ports: triton.command(folder, environment_folder, ports, repository),
        triton.variables(environment_folder, access),
        triton.answers,
        before,
    )


def _provide_repository(folder: Path, record: dict[str, Any], variables: Mapping[str, str]) -> None:
    """Make the bucket, and an object where Triton starts, once."""
    digest = hashlib.sha256(json.dumps(dict(variables), sort_keys=True).encode()).hexdigest()
    if record.get("repository") == digest:
        return
    from mlites.serving.provide import provide_repository  # boto3 takes longer to import than all of a warm start
    from mlites.storage import Store

    provide_repository(Store.open(variables["MLITES_STORE"], variables))
    record["repository"] = digest
    _save(folder, record)


def _ensure(folder: Path, record: dict[str, Any], plan: _Plan, say: Callable[[str], None]) -> None:
    """Have the planned server answering: the one that runs, or a new one where it is another or does not answer."""
    mark, log = _mark(folder, plan.name), folder / f"{plan.name}.log"
    entry = record.get(plan.name, {})
    ports = entry.get("ports", {}) if set(entry.get("ports", {})) == set(plan.wanted) else plan.wanted
    if entry.get("digest") == plan.digest and process.leader(mark) and _wait(plan, ports, mark):
        return
    for attempt in range(START_ATTEMPTS):
        process.stop(mark)
        say(f"starting {plan.name}")
        ports = plan.choose_ports(ports if attempt == 0 else dict.fromkeys(plan.wanted, 0))
        plan.before(ports)
        record[plan.name] = {"ports": ports, "digest": plan.digest}
        _save(folder, record)
        process.start(mark, plan.command(ports), plan.variables, log)
        if _wait(plan, ports, mark):
            return
    process.stop(mark)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    raise StackFailed(f"{plan.name} does not start; its log {log} ends with: {lines[-1][:300] if lines else 'nothing'}")


def _wait(plan: _Plan, ports: dict[str, int], mark: str) -> bool:
    """Wait until the server answers; False when it ended, time is up, or one of the ports is another's."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if plan.answers(ports):
            return process.owns(mark, set(ports.values()))
        if process.leader(mark) is None:
            return False
        time.sleep(0.05)
    return False


def _end(folder: Path, record: dict[str, Any], name: str) -> bool:
    ran = process.stop(_mark(folder, name), PATIENCE_SECONDS[name])
    ports = record.get(name, {}).get("ports", {})
    if name == "seaweedfs":
        seaweedfs.clear(folder, ports)
    else:
        triton.clear(folder)
    return ran


def _save(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / "servers.json", json.dumps(record, indent=1), mode=0o600)


def _listens(url: str) -> bool:
    """Whether anything takes connections at a URL; what it says is its owner's affair."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=2):
            return True
    except (OSError, ValueError):
        return False
