"""One of the processes that train a teacher together; torchrun starts it, on this machine or in a pod.

``torchrun ... -m mlites.training.worker JOB``, where JOB is the file or the s3:// address of a `job.Job`.
"""

import os
import sys
import tempfile
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mlites.checkpoints import checkpoints_in
from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.lifeline import die_with
from mlites.recipe import Teacher
from mlites.storage import fetch
from mlites.training.job import LOST, LOST_WORDS, Job, fetch_folder, split, write_failure
from mlites.training.workers import LostWorker, Workers

PATIENCE = timedelta(minutes=30)  # with a worker that does not answer, such as while the first one validates


def main(place: str) -> None:
    """Train with the others and, as the first of them, write the model to where the job says.

    Raises:
        SystemExit: code 2 with one line on standard error, which also goes to where the job says, on wrong input;
            code 75 where another worker is lost.
    """
    if runner := os.environ.get("MLITES_RUNNER_PID"):
        die_with(int(runner))
    job = Job.read(place)
    try:
        workers = _join()
        try:
            _train(job, workers)
        finally:
            dist.destroy_process_group()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        write_failure(job.failure, str(error))
        raise SystemExit(2) from None
    except LostWorker as error:
        print(f"worker {os.environ['RANK']} {LOST_WORDS} ({error})", file=sys.stderr, flush=True)
        _last_words(LOST_WORDS)
        raise SystemExit(LOST) from None
    except Exception as error:
        _last_words(f"{type(error).__name__}: {error}")
        raise


def _last_words(text: str) -> None:
    """Tell Kubernetes, which shows them with the pod's end, where ``MLITES_LAST_WORDS`` names the file for them."""
    if path := os.environ.get("MLITES_LAST_WORDS"):
        with suppress(OSError):
            Path(path).write_text(text.splitlines()[0][:1000])


def _join() -> Workers:
    """Meet the other workers; each with a GPU of its own, or all on the CPU."""
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available() and torch.cuda.device_count() >= here:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    assert dist.group.WORLD is not None
    return Workers(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def _train(job: Job, workers: Workers) -> None:
    first = workers.rank == 0
    uri = os.environ.get("MLITES_CHECKPOINTS", "")
    stored = checkpoints_in(uri, "workers") if first and uri.startswith("s3://") else nullcontext()
    with tempfile.TemporaryDirectory() as folder, stored:
        work = Path(folder)
        dataset = Dataset.load(fetch_folder(job.data, work / "data"))
        given = _given(job.given, work / "given") if job.given else None
        remote = job.model.startswith("s3://")
        model = Path(job.model) if first and not remote else work / "model"
        checkpoint = Path(job.checkpoint) if job.checkpoint else work / "checkpoint"
        teacher = Teacher.model_validate(job.teacher)
        train_teacher(teacher, dataset, job.seed, model, given, checkpoint, workers=workers)
        if first and remote:
            store, key = split(job.model)
            store.put_folder(key, model)


def _given(place: str, target: Path) -> Path:
    """A local copy of the user's model folder or file of weights."""
    return fetch(place, target)


if __name__ == "__main__":
    main(sys.argv[1])
