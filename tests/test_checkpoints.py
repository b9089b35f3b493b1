"""A checkpoint in the store outlives the machine, belongs to one training alone, and is gone when the step is done."""

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from mlites.checkpoints import checkpoints_in, stored_checkpoints
from mlites.recipe import Training
from mlites.storage import Store
from mlites.task import task
from mlites.training.loop import train
from mlites.training.resume import Epoch
from tests.training.test_loop import PLAIN, blobs, equal, network, quiet

OPTIONS = Training(epochs=3, **PLAIN)


class Killed(BaseException):
    """The pod is gone."""


@pytest.fixture
def s3(store: Store, seaweedfs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in {
        **seaweedfs,
        "MLITES_CHECKPOINTS": f"{store.uri}/checkpoints",
        "MLITES_STEP": "prune-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLITES_EVENTS", raising=False)
    monkeypatch.delenv("MLITES_RUNNER_PID", raising=False)
    return store


def step(kill: int | None = None, seed: int = 0) -> tuple[torch.nn.Module, list[float]]:
    """One try of a step in a pod of its own, killed after an epoch."""
    module, seen = network(), list[float]()

    def report(entry: Epoch) -> None:
        seen.append(entry["epoch"])
        if entry["epoch"] == kill:
            raise Killed

    with task() as checkpoint:
        assert checkpoint is not None and not checkpoint.exists()
        train(module, blobs(), OPTIONS, seed=seed, checkpoint=checkpoint, report=report)
    return module, seen


def test_a_step_tried_again_in_another_pod_ends_with_the_same_bits(s3: Store) -> None:
    with pytest.raises(Killed):
        step(kill=2)
    (key,) = s3.keys("checkpoints/")
    assert key.startswith("checkpoints/prune-1/") and key.endswith(".safetensors")
    assert any(name.startswith("model.") for name in load(s3.get(key)))  # no pickle
    again, seen = step()
    assert seen == [3] and not s3.keys("")[1:]  # store.json or nothing
    whole = network()
    train(whole, blobs(), OPTIONS, seed=0, report=quiet)
    assert equal(whole, again)


def test_another_training_neither_takes_nor_removes_it(s3: Store) -> None:
    with pytest.raises(Killed):
        step(kill=2)
    before = s3.keys("checkpoints/")
    _, seen = step(seed=1)
    assert seen == [1, 2, 3] and s3.keys("checkpoints/") == before


@pytest.mark.parametrize("damage", [b"", b"\x80\x04pickle", b"\x00" * 64])
def test_damaged_checkpoint_costs_nothing_but_itself(s3: Store, damage: bytes) -> None:
    with pytest.raises(Killed):
        step(kill=2)
    (key,) = s3.keys("checkpoints/")
    s3.put(key, damage)
    assert step()[1] == [1, 2, 3]


def test_a_store_that_fails_costs_a_line_and_not_the_training(
    s3: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLITES_S3_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        _, seen = step()
    assert seen == [1, 2, 3]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("checkpoint not ")]
    assert [line.split(":")[0] for line in lines] == ["checkpoint not read", *["checkpoint not kept"] * 3]
    assert all("does not answer" in line for line in lines)


def test_without_a_store_nothing_is_kept_there(s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLITES_CHECKPOINTS", str(tmp_path))
    with pytest.raises(Killed):
        step(kill=2)
    assert (tmp_path / "prune-1").is_file() and stored_checkpoints() is None and not s3.keys("checkpoints/")


def test_what_cannot_be_removed_is_told(
    s3: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with checkpoints_in(s3.uri, "step"):
        stored = stored_checkpoints()
        assert stored is not None
        stored.keep("0" * 64, b"content")
        assert stored.find("0" * 64) == b"content" and stored.find("1" * 64) is None
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "checkpoint not removed: S3 at" in capsys.readouterr().out
