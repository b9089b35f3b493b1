"""Whether a quantized model is faster than what it was made from: measured, as fewer bits alone do not say so."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mlites.hardware.latency import measure_latency
from mlites.recipe import Hardware


@dataclass(frozen=True)
class Speed:
    """A model's speed against another's.

    Attributes:
        speedup: above 1 where it is faster.
        interval: 95% of the speedup.
    """

    speedup: float
    interval: tuple[float, float]

    @property
    def is_slower(self) -> bool:
        """Whether it is, beyond doubt."""
        return self.interval[1] < 1

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "SLOWER than its input" if self.is_slower else "faster" if low > 1 else "no faster than its input"
        return f"{verdict}: {self.speedup:.2f}x (95% interval {low:.2f} to {high:.2f})"


def compare_speed(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    rows: NDArray[np.float32],
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 1.0,
) -> Speed:
    """Time two models in turns on this machine.

    Args:
        before: what counts as 1.
        after: the quantized model.
        rows: real inputs (n, *input_shape).
        threads: of a session.
        batch: rows in a call.
        seconds: for each model.
    """
    with tempfile.TemporaryDirectory() as work:
        paths = [Path(work, "before.onnx"), Path(work, "after.onnx")]
        for path, model in zip(paths, (before, after), strict=True):
            path.write_bytes(model.SerializeToString())
        hardware = Hardware(threads=threads, batch=batch, seconds=seconds, longest_seconds=seconds)
        _, found = measure_latency(paths, rows, hardware)
    return Speed(found.speedup, found.speedup_interval)
