"""Peak resident memory and cold start of a fresh process that only loads a model and infers."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.hardware.fresh_process import FreshProcess
from mlites.recipe import Hardware

STARTS = 3


@dataclass(frozen=True)
class Process:
    """What a process needs that infers with one model; median over several.

    Attributes:
        peak_memory_bytes: resident at the peak, the interpreter, NumPy and ONNX Runtime (some 50 MiB) included.
        load_ms: to open the session, the file being in the system's cache.
        first_inference_ms: the first batch, for which ONNX Runtime reserves memory.
    """

    peak_memory_bytes: int
    load_ms: float
    first_inference_ms: float

    def to_json(self) -> dict[str, Any]:
        return {
            "peak_memory_bytes": self.peak_memory_bytes,
            "cold_start_ms": {"load": self.load_ms, "first": self.first_inference_ms},
        }


def measure_process(path: Path, rows: NDArray[np.float32], hardware: Hardware) -> Process:
    """Load a model and infer in fresh processes, one after another.

    On Linux the peak is VmHWM; the kernel starts ru_maxrss of a new program at the peak of the process that started it.

    Args:
        path: ONNX file.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        hardware: threads, batch, provider and cores.

    Raises:
        InputError: the model cannot be loaded or run, or kills its process.
    """
    found = []
    for _ in range(STARTS):
        process = FreshProcess(path, rows, hardware, threads=hardware.threads, batch=hardware.batch)
        with closing(process):
            found.append(process.result())
    peak, load, first = (float(np.median([one[key] for one in found])) for key in ("now", "load_ms", "first_ms"))
    return Process(int(peak), load, first)
