"""A step records what it did, turns wrong input into one line, and does not outlive its runner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlites.errors import InputError
from mlites.task import task


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLITES_EVENTS", str(tmp_path / "events"))
    monkeypatch.setenv("MLITES_STEP", "prune-1")
    monkeypatch.setenv("MLITES_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.delenv("MLITES_RUNNER_PID", raising=False)
    return tmp_path / "events"


def _read(events: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in events.read_text().splitlines()]


def test_a_step_that_succeeds_tells_its_time_and_drops_its_checkpoint(events: Path) -> None:
    for write in (lambda path: path.write_text("half way"), lambda path: (path / "in").mkdir(parents=True)):
        with task() as checkpoint:
            assert checkpoint is not None
            checkpoint.parent.mkdir(exist_ok=True)
            write(checkpoint)
        assert not checkpoint.exists()
    start, end = _read(events)[:2]
    assert start == {"step": "prune-1", "event": "start"}
    assert end["event"] == "end" and end["success"] is True and 0 <= float(str(end["seconds"])) < 60


def test_wrong_input_is_one_line_and_exit_code_2(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, task() as checkpoint:
        assert checkpoint is not None
        checkpoint.parent.mkdir()
        checkpoint.write_text("half way")
        raise InputError("rows.csv: column 'age' holds text; remove it")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: rows.csv: column 'age' holds text; remove it\n"
    assert checkpoint.exists()
    error = _read(events)[1]
    assert (
        error["event"] == "error"
        and error["input"] is True
        and error["error"] == "rows.csv: column 'age' holds text; remove it"
    )


def test_a_defect_keeps_its_traceback_and_is_recorded_as_one_line(events: Path) -> None:
    with pytest.raises(ZeroDivisionError), task():
        _ = 1 / 0
    error, end = _read(events)[1:]
    assert error["error"] == "ZeroDivisionError: division by zero" and error["input"] is False
    assert end["success"] is False


def test_outside_a_runner_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLITES_EVENTS", "MLITES_STEP", "MLITES_CHECKPOINTS", "MLITES_RUNNER_PID"):
        monkeypatch.delenv(name, raising=False)
    with task() as checkpoint:
        assert checkpoint is None


@pytest.mark.parametrize("group", [False, True])
def test_a_process_ends_when_the_one_it_watches_is_killed(group: bool) -> None:
    watched = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    program = f"import sys; from mlites.lifeline import die_with; die_with({watched.pid}, group={group})"
    program += "; print('on', flush=True); sys.stdin.read()"
    watching = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert watching.stdout is not None and watching.stdout.readline() == b"on\n"
    watched.kill()
    watched.wait()
    assert watching.wait(timeout=30) == -9
    for process in (watched, watching):
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def test_a_process_does_not_start_when_the_one_it_watches_is_gone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    program = f"from mlites.lifeline import die_with; die_with({gone.pid}); print('went on')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=os.environ)
    assert result.returncode == -9 and result.stdout == b""
