"""One step of a pipeline: its time, its errors and its checkpoint, the same in a container and on a laptop."""

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlites.errors import InputError

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


@contextmanager
def task() -> Iterator[Path | None]:
    """Run the body of a component.

    Reads three variables of the environment: ``MLITES_STEP`` names the step, ``MLITES_EVENTS`` is a file that takes one
    JSON line when the step starts and one when it ends (the local runner reads it), ``MLITES_CHECKPOINTS`` is a folder
    that outlives the process. All may be missing.

    Yields:
        The path of this step's checkpoint, or None where nothing would outlive the step. It is removed on success.

    Raises:
        SystemExit: code 2 with one line on standard error, in place of an `InputError`.
    """
    _die_with_parent()
    step = os.environ.get("MLITES_STEP", "step")
    folder = os.environ.get("MLITES_CHECKPOINTS")
    checkpoint = Path(folder) / step if folder else None
    start = time.monotonic()
    _record({"step": step, "event": "start"})
    error: str | None = None
    try:
        yield checkpoint
    except InputError as fault:
        error = str(fault)
        print(f"error: {error}", file=sys.stderr, flush=True)
        _record({"step": step, "event": "error", "error": error, "input": True})
        raise SystemExit(2) from None
    except BaseException as fault:
        error = f"{type(fault).__name__}: {fault}".splitlines()[0]
        _record({"step": step, "event": "error", "error": error, "input": False})
        raise
    finally:
        _record({"step": step, "event": "end", "seconds": time.monotonic() - start, "success": error is None})
    if checkpoint is not None and checkpoint.exists():
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


def _record(event: dict[str, Any]) -> None:
    if path := os.environ.get("MLITES_EVENTS"):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, json.dumps(event).encode() + b"\n")  # one write: lines of two tasks never mix
        finally:
            os.close(handle)


def _die_with_parent() -> None:
    """Ask Linux to end this process when the runner is killed, so that nothing goes on writing behind its back."""
    if sys.platform == "linux" and os.environ.get("MLITES_EVENTS"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
