"""A failed candidate leaves its failure in place of its model, and every later step hands it on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.artifacts import candidate_step
from mlites.errors import InputError, ParityError
from mlites.failure import CandidateFailed, Failure, read_failure, write_failure
from mlites.hardware.failed import failed_verdict
from mlites.models.card import read_card

FAULT = Failure("prune structured 50%", "nothing to prune: lower round_to")


@pytest.fixture
def artifacts(tmp_path: Path) -> tuple[Any, Any]:
    """What KFP hands to a step that makes a model."""
    places = tmp_path / "model", tmp_path / "metrics"
    model, metrics = (SimpleNamespace(path=str(place), metadata={}) for place in places)
    return model, metrics


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLITES_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setenv("MLITES_STEP", "prune-012345")
    monkeypatch.delenv("MLITES_RUNNER_PID", raising=False)
    return tmp_path / "events.jsonl"


def told(events: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in events.read_text().splitlines()]


@pytest.mark.parametrize("kind", [InputError, ParityError])
def test_a_candidates_step_that_fails_ends_well_with_the_failure_in_place_of_the_model(
    kind: type[Exception],
    artifacts: tuple[Any, Any],
    events: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLITES_CANDIDATE_STEP", FAULT.step)
    model, metrics = artifacts
    with candidate_step(model, metrics):
        raise kind("nothing to prune:\n  lower round_to")
    assert read_failure(Path(model.path)) == FAULT
    assert model.metadata == {"failed": "prune structured 50%: nothing to prune: lower round_to"}
    assert Path(metrics.path).read_text() == "{}"
    assert capsys.readouterr().err == "failed: nothing to prune: lower round_to\n"
    _, failed, end = told(events)
    assert failed == {"step": "prune-012345", "event": "failed", "error": FAULT.error, "here": True}
    assert end["event"] == "end" and end["success"] is True


def test_later_steps_hand_the_failure_on_as_it_was(
    artifacts: tuple[Any, Any],
    events: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLITES_CANDIDATE_STEP", "prune structured 50% > quantize static")
    write_failure(tmp_path / "parent", FAULT)
    with candidate_step(*artifacts):
        read_card(tmp_path / "parent")
    assert read_failure(tmp_path / "model") == FAULT
    assert [event.get("here") for event in told(events)] == [None, False, None]
    assert capsys.readouterr().err == ""  # told once, by the step that failed


@pytest.mark.parametrize(("words", "kind"), [("", InputError), ("prune structured 50%", MemoryError)])
def test_steps_that_all_depend_on_and_faults_of_the_machine_end_the_run(
    words: str, kind: type[Exception], artifacts: tuple[Any, Any], events: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLITES_CANDIDATE_STEP", words)
    with pytest.raises((SystemExit, MemoryError)), candidate_step(*artifacts):
        raise kind("no space")
    assert not Path(artifacts[0].path).exists()
    assert [event["event"] for event in told(events)] == ["start", "error", "end"]


def test_a_damaged_failure_is_told(tmp_path: Path):
    (tmp_path / "failed.json").write_text("{")
    with pytest.raises(InputError, match=r"failed\.json: not JSON; expected a failure"):
        read_card(tmp_path)


def test_the_verdict_on_a_failed_candidate_says_where_and_why():
    verdict = failed_verdict("pruned", ["prune structured 50%"], Failure.of(CandidateFailed(FAULT), "validate pruned"))
    assert verdict["candidate"] == "pruned" and verdict["passes"] == ["prune structured 50%"]
    assert verdict["failed"] == {"step": "prune structured 50%", "error": "nothing to prune: lower round_to"}
    assert verdict["baseline"] is None
