"""Killed at any step, a run resumes and every candidate ends with the model of an undisturbed run."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Workplace

RECIPE = """\
name: small
data: {source: digits, limit: 400}
teacher:
  architecture: {family: resnet, depth: 8, width: 8}
  training: {epochs: 3, augmentation: [crop]}
candidates:
  - name: int8
    passes: [{pass: quantize, samples: 64}]
  - name: pruned
    passes: [{pass: prune, amount: 0.5, training: {epochs: 2}}]
  - name: student
    passes: [{pass: distill, student: {family: mlp, hidden: [16]}, training: {epochs: 3}}]
hardware: {seconds: 0.2, longest_seconds: 0.2}
budget: {accuracy_drop_points: 100}
serving: {model: interrupted}
"""
KINDS = {"prepare", "train", "distill", "prune", "export", "quantize", "validate", "select", "gate", "deploy", "report"}
PATIENCE_SECONDS = 120.0


def _events(home: Path) -> list[dict[str, Any]]:
    lines: list[str] = []
    with suppress(FileNotFoundError):  # a run that ends takes its folder with it
        for path in home.glob("work/*/events.jsonl"):
            lines += path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _processes_of(home: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MLITES_EVENTS={home}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def _run_until_another_kind_starts(place: Workplace, home: Path, killed: set[str]) -> str | None:
    """Start a run and kill it as soon as a step starts of a kind not killed yet; None if the run comes to its end."""
    command, quiet = place.command("run", "recipe.yaml"), subprocess.DEVNULL
    runner = subprocess.Popen(command, cwd=place.folder, env=place.environment, stdout=quiet, stderr=quiet)
    while runner.poll() is None:
        for kind in [one["step"].split("-")[0] for one in _events(home) if one["event"] == "start"]:
            if kind not in killed:
                os.kill(runner.pid, signal.SIGKILL)
                runner.wait()
                return kind
        time.sleep(0.01)
    assert runner.returncode == 0
    return None


def test_a_killed_run_resumes_to_the_same_models(workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shared = {**workplace.environment, **workplace.servers()}
    disturbed = Workplace(tmp_path, {**shared, "MLITES_HOME": str(tmp_path / "disturbed")})
    home = tmp_path / "disturbed"
    killed: set[str] = set()
    while (kind := _run_until_another_kind_starts(disturbed, home, killed)) is not None:
        killed.add(kind)
        _until(lambda: not _processes_of(home), "a process outlived the runner")
        for run in (tmp_path / "runs").glob("*"):
            assert (run / "summary.json").exists(), "a half-written run is visible"
    assert killed == KINDS
    resumed = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert any(step["cached"] for step in resumed["steps"])

    quiet = Workplace(tmp_path, {**shared, "MLITES_HOME": str(tmp_path / "quiet")})
    result = quiet.mlites("run", "recipe.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    undisturbed = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert not any(step["cached"] for step in undisturbed["steps"])
    digests = [{one["name"]: one["model"] for one in summary["candidates"]} for summary in (resumed, undisturbed)]
    assert digests[0] == digests[1]
