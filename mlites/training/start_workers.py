"""A teacher trained by several workers: as processes of this machine, or as pods of a Kubeflow TrainJob."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from mlites.data.dataset import Dataset
from mlites.errors import InputError, WorkerFailed
from mlites.files import canonical_json, write_atomically
from mlites.models.card import ModelCard, read_card
from mlites.recipe import Teacher
from mlites.training.job import LOST, Job, read_failure

GRACE_SECONDS = 10.0  # that the launcher has to end its workers


def train_with_workers(
    teacher: Teacher,
    dataset: Dataset,
    seed: int,
    folder: Path,
    given: Path | None,
    checkpoint: Path | None,
    store: str | None,
) -> ModelCard:
    """Have several processes train the teacher, and take over the model folder that the first of them writes.

    With ``MLITES_TRAIN_JOB`` in the environment, which the pipeline for a cluster sets, they are the pods of a
    TrainJob, to and from which data and model go through the store; else they are processes of this machine.

    Args:
        teacher: names how many, and what to train.
        dataset: to train and decide on.
        seed: of initial weights and all draws.
        folder: where the model goes; replaced whole.
        given: local copy of the user's model folder or weights, where the recipe names one.
        checkpoint: place on this machine that outlives a killed run.
        store: ``s3://bucket/prefix``.

    Raises:
        InputError: what a worker found wrong with its input.
        WorkerFailed: a worker ended before its time.
    """
    if settings := os.environ.get("MLITES_TRAIN_JOB"):
        from mlites.training.train_job import JobSettings, train_in_cluster

        if not store:
            raise InputError("MLITES_TRAIN_JOB is set, but no store: data and model go to the pods through S3")
        return train_in_cluster(JobSettings.parse(settings), teacher, dataset, seed, folder, given, store)
    with tempfile.TemporaryDirectory() as work:
        job = Job(
            teacher=teacher.model_dump(mode="json", exclude_none=True),
            seed=seed,
            data=str(dataset.folder.resolve()),
            given=str(given.resolve()) if given else None,
            model=str(folder.resolve()),
            failure=str(Path(work) / "failure.json"),
            checkpoint=str(checkpoint.resolve()) if checkpoint else None,
        )
        write_atomically(Path(work) / "job.json", canonical_json(job.to_json()))
        _launch(teacher.workers, job, Path(work))
    return read_card(folder)


def _launch(count: int, job: Job, work: Path) -> None:
    failed = work / "failed.json"
    command = [sys.executable, "-m", "mlites.training.launch", str(count), str(work / "job.json"), str(failed)]
    # Each has its share of the cores; several with all of them would take turns.
    variables = {
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
        "MLITES_RUNNER_PID": str(os.getpid()),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONSAFEPATH": "1",
    }
    print(f"training with {count} workers, {variables['OMP_NUM_THREADS']} threads each", flush=True)
    process = subprocess.Popen(command, env={**os.environ, **variables})
    try:
        code = process.wait()
    finally:
        _end(process)
    if code == 0:
        return
    if error := read_failure(job.failure):
        raise InputError(error)
    if not failed.exists():
        raise WorkerFailed(f"the launcher of {count} workers ended {_how(code)}; its output has more")
    found = json.loads(failed.read_bytes())
    first = next((one for one in found if one["exit_code"] != LOST), found[0])
    raise WorkerFailed(f"worker {first['rank']} of {count} ended {_how(first['exit_code'])}; {_advice(first)}")


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _advice(failure: dict[str, int]) -> str:
    if failure["exit_code"] == -signal.SIGKILL:
        return "if the machine ran out of memory, take fewer workers; run again to go on from the last epoch"
    return "its output has more; run again to go on from the last epoch"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the launcher, which ends its workers; where it is killed, they end with it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
