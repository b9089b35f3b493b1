"""One step of a pipeline: its time, its errors and its checkpoint, the same in a container and on a laptop."""

import atexit
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlites.errors import InputError, ParityError, WorkerFailed
from mlites.failure import CandidateFailed, Failure, write_failure
from mlites.lifeline import die_with

if TYPE_CHECKING:
    from mlites.run_events import Teller


@contextmanager
def task(model: Path | None = None) -> Iterator[Path | None]:
    """Run the body of a component.

    Reads variables of the environment, which may all be missing: ``MLITES_STEP`` names the step; ``MLITES_EVENTS`` is a
    file that takes a JSON line when the step starts, fails and ends (the local runner reads it), or the s3:// address
    of a store, which takes them in a cluster under the run's ``MLITES_RUN_ID``; ``MLITES_CHECKPOINTS`` is a folder that
    outlives the process, or an ``s3://`` address where checkpoints outlive the machine, too; ``MLITES_RUNNER_PID`` is
    whom not to outlive; ``MLITES_CANDIDATE_STEP`` says in words what the step does for a candidate, which others do not
    depend on. Such a step ends well on an `InputError` or a `ParityError`, with the failure in place of its model; any
    other exception may be a fault of the machine that another try does not meet.

    Args:
        model: folder that the step writes, if it makes a model.

    Yields:
        The path of this step's checkpoint, or None where nothing would outlive the step. It is removed on success.

    Raises:
        SystemExit: code 2 with one line on standard error, in place of an `InputError`, and code 1 in place of a
            `WorkerFailed`.
    """
    if runner := os.environ.get("MLITES_RUNNER_PID"):
        die_with(int(runner))
    step = os.environ.get("MLITES_STEP", "step")
    start = time.monotonic()
    _record({"step": step, "event": "start"})
    error: str | None = None
    try:
        try:
            with _checkpoint(step) as checkpoint:
                yield checkpoint
        except (InputError, ParityError) as fault:
            words = os.environ.get("MLITES_CANDIDATE_STEP")
            if model is None or not words:
                raise
            write_failure(model, record_failure(fault, words))
            return
    except InputError as fault:
        error = str(fault)
        print(f"error: {error}", file=sys.stderr, flush=True)
        _record({"step": step, "event": "error", "error": error, "input": True})
        raise SystemExit(2) from None
    except WorkerFailed as fault:
        error = str(fault)
        print(f"error: {error}", file=sys.stderr, flush=True)
        _record({"step": step, "event": "error", "error": error, "input": False})
        raise SystemExit(1) from None
    except BaseException as fault:
        error = f"{type(fault).__name__}: {fault}".splitlines()[0]
        _record({"step": step, "event": "error", "error": error, "input": False})
        raise
    finally:
        _record({"step": step, "event": "end", "seconds": time.monotonic() - start, "success": error is None})
    if runner:
        atexit.register(_leave)


@contextmanager
def _checkpoint(step: str) -> Iterator[Path | None]:
    """The path of a step's checkpoint, which is removed on success."""
    place = os.environ.get("MLITES_CHECKPOINTS")
    if not place:
        yield None
    elif place.startswith("s3://"):
        from mlites.checkpoints import checkpoints_in  # knows S3, which takes long to import

        with tempfile.TemporaryDirectory() as work, checkpoints_in(place, step):
            yield Path(work) / step
    else:
        checkpoint = Path(place) / step
        yield checkpoint
        if checkpoint.exists():
            shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


def record_failure(fault: Exception, words: str) -> Failure:
    """Tell that a candidate failed while the run goes on.

    Args:
        fault: what happened, here or in a step before.
        words: what this step does.
    """
    failure = Failure.of(fault, words)
    here = not isinstance(fault, CandidateFailed)
    if here:
        print(f"failed: {failure.error}", file=sys.stderr, flush=True)
    step = os.environ.get("MLITES_STEP", "step")
    _record({"step": step, "event": "failed", "error": failure.error, "here": here})
    return failure


def tell(**found: Any) -> None:
    """Leave JSON values to those that close the run: a failed run's report shows what its steps had found."""
    _record({"step": os.environ.get("MLITES_STEP", "step"), "event": "found", "found": found})


def _leave() -> None:
    """End the process without taking apart the modules, which costs PyTorch a second; a failed one ends as ever."""
    if getattr(sys, "last_value", None) is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@functools.cache
def _teller(store: str, run: str) -> "Teller":
    from mlites.run_events import Teller  # boto3 and pydantic are for clusters alone

    return Teller(store, run)


def _record(event: dict[str, Any]) -> None:
    path = os.environ.get("MLITES_EVENTS", "")
    if path.startswith("s3://"):
        _teller(path, os.environ.get("MLITES_RUN_ID", "unknown")).tell(event)
    elif path:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, json.dumps(event).encode() + b"\n")  # one write: lines of two tasks never mix
        finally:
            os.close(handle)
