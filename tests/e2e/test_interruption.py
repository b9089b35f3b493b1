"""Killed at any step, a run resumes and every candidate ends with the model of an undisturbed run."""

import json
import os
import signal
import subprocess
import time
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
hardware: {seconds: 0.2}
budget: {accuracy_drop_points: 100}
serving: {model: interrupted}
"""
STEPS = ("prepare-data", "train-teacher", "distill", "prune", "export", "quantize", "validate", "deploy", "report")
PATIENCE_SECONDS = 120.0


def _events(home: Path) -> list[dict[str, Any]]:
    lines = [line for path in home.glob("work/*/events.jsonl") for line in path.read_text().splitlines(keepends=True)]
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


def test_a_killed_run_resumes_to_the_same_models(workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shared = {**workplace.environment, **workplace.servers()}
    disturbed = Workplace(tmp_path, {**shared, "MLITES_HOME": str(tmp_path / "disturbed")})
    home = tmp_path / "disturbed"
    for kill_at in STEPS:
        runner = subprocess.Popen(
            disturbed.command("run", "recipe.yaml"),
            cwd=tmp_path,
            env=disturbed.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _until(
            lambda: any(one["event"] == "start" and one["step"].startswith(kill_at) for one in _events(home)),  # noqa: B023
            f"step {kill_at} did not start",
        )
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
        _until(lambda: not _processes_of(home), "a process outlived the runner")
        for run in (tmp_path / "runs").glob("*"):
            assert (run / "summary.json").exists(), "a half-written run is visible"
    result = disturbed.mlites("run", "recipe.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    resumed = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert any(step["cached"] for step in resumed["steps"])

    quiet = Workplace(tmp_path, {**shared, "MLITES_HOME": str(tmp_path / "quiet")})
    result = quiet.mlites("run", "recipe.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    undisturbed = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert not any(step["cached"] for step in undisturbed["steps"])
    digests = [{one["name"]: one["model"] for one in summary["candidates"]} for summary in (resumed, undisturbed)]
    assert digests[0] == digests[1]
