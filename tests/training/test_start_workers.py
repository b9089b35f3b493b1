"""`workers: 2` on this machine: real processes, the same bits each time, and none left when one is killed."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.files import canonical_json, digest_folder, write_atomically
from mlites.models.build import build_model
from mlites.models.card import ModelCard, read_card
from mlites.models.checkpoint import save_model
from mlites.recipe import Teacher
from mlites.storage import Store
from mlites.task import task
from mlites.training import worker
from mlites.training.job import Job, read_failure
from mlites.training.train_job import JobSettings, train_in_cluster
from mlites.training.workers import LostWorker
from tests.training.conftest import Kubelet
from tests.training.kubernetes_api import Document, KubernetesApi, Pod, run_processes

OPTIONS: dict[str, Any] = {
    "architecture": {"family": "resnet", "depth": 8, "width": 4},
    "training": {"epochs": 3, "batch_size": 32, "precision": "fp32", "augmentation": ["crop"]},
}
TWO = Teacher.model_validate({**OPTIONS, "workers": 2})


def workers_of(mark: str) -> dict[int, int]:
    """Process ids of the launcher (-1) and of the workers, by rank, that bear a mark in their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(one.split(b"=", 1) for one in (path / "environ").read_bytes().split(b"\0") if b"=" in one)
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if variables.get(b"MLITES_TEST") == mark.encode() and b"mlites.training." in command:
            found[int(variables.get(b"RANK", b"-1"))] = int(path.name)
    return found


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Model folder of a training by two workers that nothing disturbed, one thread each."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_teacher(TWO, dataset, 0, folder)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLITES_TEST", str(tmp_path))
    monkeypatch.delenv("MLITES_CHECKPOINTS", raising=False)
    yield str(tmp_path)
    deadline = time.monotonic() + 30
    while left := workers_of(str(tmp_path)):
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_a_killed_worker_fails_the_step_in_one_line_and_the_next_try_ends_with_the_same_bits(
    dataset: Dataset,
    whole: Path,
    tmp_path: Path,
    mark: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLITES_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("MLITES_STEP", "train-teacher")

    def kill_second() -> None:
        while not (tmp_path / "checkpoints" / "train-teacher").exists():
            time.sleep(0.002)
        os.kill(workers_of(mark)[1], signal.SIGKILL)

    def step(folder: str) -> None:
        with task() as checkpoint:
            train_teacher(TWO, dataset, 0, tmp_path / folder, checkpoint=checkpoint)

    killer = threading.Thread(target=kill_second)
    killer.start()
    with pytest.raises(SystemExit) as caught:
        step("killed")
    killer.join()
    told = capfd.readouterr()
    assert caught.value.code == 1 and not (tmp_path / "killed").exists()
    assert told.err.splitlines()[-1] == (
        "error: worker 1 of 2 ended by SIGKILL; if the machine ran out of memory, take fewer workers; "
        "run again to go on from the last epoch"
    )
    assert "Traceback" not in told.err and told.err.count("\n") <= 2
    before = [line.split()[1] for line in told.out.splitlines() if line.startswith("epoch ")]
    step("resumed")
    after = [line.split()[1] for line in capfd.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert before and after and [*before, *after][-len(after) - 1] <= after[0] and after[0] != "1/3"
    assert not (tmp_path / "checkpoints" / "train-teacher").exists()
    assert digest_folder(tmp_path / "resumed") == digest_folder(whole)
    card = read_card(whole)
    assert card.provenance[0]["metrics"]["workers"] == 2 and len(card.provenance[0]["history"]) == 3
    alone = train_teacher(Teacher.model_validate(OPTIONS), dataset, 0, tmp_path / "alone")
    losses = [[epoch["train_loss"] for epoch in one.provenance[0]["history"]] for one in (card, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.timeout(300)
def test_torchrun_in_pods_survives_a_lost_one_and_gives_the_model_of_local_workers(
    whole: Path,
    s3: Store,
    seaweedfs: dict[str, str],
    dataset: Dataset,
    kubernetes: Callable[[Kubelet], KubernetesApi],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mark: str,
) -> None:
    """The second pod is killed once; both start again, and go on from the checkpoint in the store."""

    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        threading.Thread(target=kill_once, args=(pods,), daemon=True).start()
        run_processes(api, job, pods, tries=2)

    def kill_once(pods: list[Pod]) -> None:
        while not any("epoch 1/" in line for _, line in pods[0].log):
            if pods[0].document["status"]["phase"] in ("Succeeded", "Failed"):
                return
            time.sleep(0.005)
        assert pods[1].process is not None
        os.killpg(pods[1].process.pid, signal.SIGKILL)

    api = kubernetes(kubelet)
    api.secrets = {
        "mlites-s3": {key: seaweedfs[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        "mlites-servers": {"MLITES_S3_ENDPOINT": seaweedfs["MLITES_S3_ENDPOINT"], "AWS_REGION": "us-east-1"},
    }
    settings = JobSettings(image="registry/train@sha256:12", cpu="1")  # as many threads as local workers have
    card = train_in_cluster(settings, TWO, dataset, 0, tmp_path / "model", None, s3.uri)
    assert card == read_card(tmp_path / "model") and card.provenance[0]["metrics"]["workers"] == 2
    assert [entry["epoch"] for entry in card.provenance[0]["history"]] == [1, 2, 3]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert said[0].startswith("epoch 1/3") and said[-1].startswith("epoch 3/3")
    assert len(said) == 3, "an epoch was trained twice"
    assert api.jobs == {} and api.pods == {}
    left = {key.split("/")[0] for key in s3.keys("")} - {"store.json"}
    assert left == {"datasets"}  # no checkpoint, no job
    assert digest_folder(tmp_path / "model") == digest_folder(whole)


def test_wrong_input_that_the_workers_find_is_the_step_s(dataset: Dataset, tmp_path: Path, mark: str) -> None:
    """The data is damaged after this process has read its description."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in dataset.folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    prepared = Dataset.load(broken)
    (broken / "train.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"train\.safetensors"):
        train_teacher(TWO, prepared, 0, tmp_path / "model")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun sets for the only worker of a training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.delenv("MLITES_RUNNER_PID", raising=False)
    monkeypatch.delenv("MLITES_CHECKPOINTS", raising=False)


def write_job(folder: Path, dataset: Dataset, **changed: Any) -> str:
    job = Job(OPTIONS, 0, str(dataset.folder), None, str(folder / "model"), str(folder / "failure.json"))
    write_atomically(folder / "job.json", canonical_json(replace(job, **changed).to_json()))
    return str(folder / "job.json")


def test_a_worker_writes_the_model_of_its_job(dataset: Dataset, tmp_path: Path, alone: None) -> None:
    worker.main(write_job(tmp_path, dataset))
    card = read_card(tmp_path / "model")
    assert card.provenance[0]["metrics"]["workers"] == 1 and not dist.is_initialized()
    train_teacher(Teacher.model_validate(OPTIONS), dataset, 0, tmp_path / "plain")
    assert read_card(tmp_path / "plain").provenance[0]["history"][0]["train_loss"] == pytest.approx(
        card.provenance[0]["history"][0]["train_loss"], rel=1e-5
    )


def test_a_worker_leaves_its_job_in_the_store(
    dataset: Dataset,
    tmp_path: Path,
    alone: None,
    store: Store,
    seaweedfs: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**seaweedfs, "MLITES_CHECKPOINTS": f"{store.uri}/checkpoints"}.items():
        monkeypatch.setenv(name, value)
    save_model(tmp_path / "mine", build_model(OPTIONS["architecture"], (1, 8, 8), 3, seed=1), new_card(dataset))
    store.put_folder("data", dataset.folder)
    store.put_folder("mine", tmp_path / "mine")
    (tmp_path / "job").mkdir()
    place = write_job(
        tmp_path / "job",
        dataset,
        teacher={"model": "given", "transfer": {"head_epochs": 1, "training": OPTIONS["training"]}},
        data=f"{store.uri}/data",
        given=f"{store.uri}/mine",
        model=f"{store.uri}/model",
    )
    store.put_file("job.json", Path(place))
    worker.main(f"{store.uri}/job.json")
    store.get_folder("model", tmp_path / "model")
    assert len(read_card(tmp_path / "model").provenance[-1]["history"]) == 4
    assert not store.keys("checkpoints/")


def new_card(dataset: Dataset) -> ModelCard:
    return ModelCard(
        form="torch",
        architecture={**OPTIONS["architecture"]},
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing.to_json(),
    )


def test_a_worker_tells_what_is_wrong_in_one_line(
    dataset: Dataset, tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write_job(tmp_path, dataset, data=str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        worker.main(place)
    error = read_failure(str(tmp_path / "failure.json"))
    assert caught.value.code == 2 and error is not None and "data.json" in error
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "mlites-training/1", "seed": 3}'])
def test_what_is_no_job_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(InputError, match=r"job.json: no training job \(mlites-training/1\)"):
        Job.read(str(tmp_path / "job.json"))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (LostWorker("reset"), 75, "lost another worker"),
        (ValueError("no such thing\nmore"), None, "ValueError: no such thing"),
    ],
)
def test_last_words_of_a_worker_tell_who_failed_first(
    dataset: Dataset,
    tmp_path: Path,
    alone: None,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int | None,
    words: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "train_teacher", fail)
    monkeypatch.setenv("MLITES_LAST_WORDS", str(tmp_path / "words"))
    with pytest.raises((SystemExit, ValueError)) as caught:
        worker.main(write_job(tmp_path, dataset))
    assert getattr(caught.value, "code", None) == code
    assert (tmp_path / "words").read_text() == words
