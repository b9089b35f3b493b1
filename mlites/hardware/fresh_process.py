"""A fresh process that only loads a model and infers: what it costs, free of what the caller holds."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.hardware.profile import keep_to_cores
from mlites.inference import choose_providers, explain
from mlites.recipe import Hardware

PROGRAM = Path(__file__).with_name("infer_only.py")
LONGEST_SECONDS = 600


class FreshProcess:
    """Starts at once, on as many cores as the profile has; a file that crashes ONNX Runtime ends it and not the caller.

    It is ended where it takes longer than `LONGEST_SECONDS`, and by `close`, which must be called.
    """

    def __init__(
        self, path: Path, rows: NDArray[np.float32], hardware: Hardware, *, threads: int, batch: int, **job: Any
    ) -> None:
        """Load the model and infer a few times.

        Args:
            path: ONNX file.
            rows: real inputs (n, ...), repeated or cut to fill the batch.
            hardware: the provider and the cores.
            threads: of the session.
            batch: rows in one inference.
            job: which requests to answer then: see `infer_only.main`.
        """
        self._path = path
        inputs = np.ascontiguousarray(np.resize(rows, (batch, *rows.shape[1:])), np.float32)
        providers = choose_providers(hardware.provider, hardware.provider_options)
        job |= {"model": str(path), "threads": threads, "providers": providers, "shape": inputs.shape}
        # -P: a module of this folder must not hide one of the standard library
        command = [sys.executable, "-P", str(PROGRAM), json.dumps(job)]
        with keep_to_cores(hardware.cores):
            self._process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1)
        self._late = False
        self._timer = Timer(LONGEST_SECONDS, self._give_up)
        self._timer.start()
        self._send(inputs.tobytes())

    def wait_until_ready(self) -> None:
        """Return once the model is loaded and warm.

        Raises:
            InputError: the model cannot be loaded or run.
        """
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            self.result()

    def begin(self, at: float) -> None:
        """Let it answer requests from this time of the monotonic clock on."""
        self._send(f"{at}\n".encode())

    def result(self) -> dict[str, Any]:
        """What the program found, once it has ended.

        Raises:
            InputError: the model cannot be loaded or run.
        """
        out, said = self._process.communicate()
        code = self._process.returncode
        if self._late:
            raise InputError(
                f"{self._path}: a few inferences take more than {LONGEST_SECONDS} s; this model is too slow"
            )
        if code < 0:
            raise InputError(f"{self._path}: ONNX Runtime dies of {signal.Signals(-code).name} on this file")
        if code:
            raise InputError(f"{self._path}: ONNX Runtime cannot use it: {explain(said.decode(errors='replace'))}")
        found: dict[str, Any] = json.loads(out)
        return found

    def close(self) -> None:
        """End it, whatever it does."""
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _send(self, content: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except BrokenPipeError:  # it is dead; its result says why
            pass
