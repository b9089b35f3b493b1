"""Peak resident memory of a fresh process that only loads a model and infers."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.inference import explain

PROGRAM = Path(__file__).with_name("infer_only.py")
LONGEST_SECONDS = 600


def measure_peak_memory(path: Path, rows: NDArray[np.float32], *, threads: int, batch: int) -> int:
    """Bytes resident at the peak, the interpreter, NumPy and ONNX Runtime (some 50 MiB) included.

    On Linux this is VmHWM; the kernel starts ru_maxrss of a new program at the peak of the process that started it.
    A file that crashes ONNX Runtime ends this process and not the caller.

    Args:
        path: ONNX file.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        threads: of the session.
        batch: rows in one inference.

    Raises:
        InputError: the model cannot be loaded or run.
    """
    inputs = np.resize(rows, (batch, *rows.shape[1:]))
    # -P: a module of this folder must not hide one of the standard library
    command = [sys.executable, "-P", str(PROGRAM), str(path), str(threads), json.dumps(inputs.shape)]
    try:
        done = subprocess.run(
            command,
            input=inputs.astype(np.float32).tobytes(),
            capture_output=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: 10 inferences take more than {LONGEST_SECONDS} s; this model is too slow") from None
    if done.returncode < 0:
        raise InputError(f"{path}: ONNX Runtime dies of {signal.Signals(-done.returncode).name} on this file")
    if done.returncode:
        raise InputError(f"{path}: ONNX Runtime cannot use it: {explain(done.stderr.decode(errors='replace'))}")
    return int(json.loads(done.stdout)["now"])
