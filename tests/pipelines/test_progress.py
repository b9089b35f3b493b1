"""Off a terminal a run is told in plain lines: each step once, and an epoch now and then."""

import pytest

from pipelines import progress
from pipelines.progress import Progress


def test_steps_are_counted_and_cached_ones_said(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("digits") as shown:
        shown.begin("embedded stack")
        shown.end("embedded stack", 1.26)
        shown.expect(4)  # of two branches one will not run
        shown.begin("teacher [bold]")
        shown.end("teacher [bold]", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["✓      1  embedded stack  1.3 s", "✓    2/4  teacher [bold]  cached"]


def test_epochs_are_told_now_and_then_and_kfps_words_never(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with Progress("digits") as shown:
        shown.begin("teacher")
        shown.detail("[KFP Executor 2026-01-01 INFO]: Got executor_input:")
        shown.detail("epoch 3/20  loss 0.312")
    assert capsys.readouterr().out.splitlines() == ["           teacher: epoch 3/20  loss 0.312"]
    monkeypatch.setattr(progress, "QUIET_SECONDS", 1e9)
    with Progress("digits") as shown:
        shown.begin("teacher")
        shown.detail("epoch 3/20  loss 0.312")
    assert capsys.readouterr().out == ""


def test_a_failed_candidate_is_told_once_with_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("digits") as shown:
        shown.expect(4)
        shown.fail("prune 50%", "nothing [to] prune")
        shown.fail("prune 50% > int8", None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["✗    1/3  prune 50%  failed: nothing [to] prune", "✗    2/3  prune 50% > int8  skipped"]
