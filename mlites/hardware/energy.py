"""Energy of one inference: measured where the hardware counts it, else estimated by a model that is stated.

Sources: David et al. (2010), RAPL; for the estimate, Cloud Carbon Footprint's coefficients, drawn from SPECpower: a
server under full load takes 3.5 W for each logical core, in the mean over the processors of its largest cloud.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.hardware.machine import read_machine
from mlites.hardware.nvml import Nvml
from mlites.hardware.rapl import POWERCAP, Rapl
from mlites.inference import explain, open_session, read_signature
from mlites.recipe import Hardware

WATTS_PER_BUSY_CORE = 3.5
BLOCKS = 10
STUDENT_95 = 2.262  # of 9 degrees of freedom
COUNTED_SECONDS = 0.2  # of a block: counters are renewed every millisecond (RAPL) to some 100 ms (NVML)
ESTIMATED_SECONDS = 0.05

Reading = Callable[[], Callable[[], float]]  # begins to count; what it returns tells the joules since


@dataclass(frozen=True)
class Energy:
    """Energy of one inference of a batch.

    Attributes:
        millijoules: mean over blocks of inferences, one after the other.
        interval: 95%, of the mean; an estimate's covers the processor time alone and not the watts.
        kind: whether a counter of the hardware counted it.
        source: the counter and what it includes, or the model of the estimate and why there is no counter.
    """

    millijoules: float
    interval: tuple[float, float]
    kind: Literal["measured", "estimated"]
    source: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval)}


def measure_energy(
    path: Path, rows: NDArray[np.float32], hardware: Hardware, latency_ms: float, powercap: Path = POWERCAP
) -> Energy:
    """Run a model over and over and read what it takes.

    Args:
        path: ONNX file with one float32 input.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        hardware: threads, batch and provider.
        latency_ms: of one inference: decides how many make a block.
        powercap: where the kernel shows its counters.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    session = open_session(path, hardware.threads, hardware.provider, hardware.provider_options)
    signature = read_signature(session, path)
    feed = {signature.input: np.resize(rows, (signature.batch or hardware.batch, *rows.shape[1:]))}

    def infer() -> None:
        session.run([signature.output], feed)

    try:
        infer()
    except Exception as error:
        raise InputError(f"{path}: ONNX Runtime cannot run it: {explain(error)}") from None
    counter, why_not = _counter(hardware, powercap)
    if counter is not None:
        begin, source = counter
        joules = _blocks(infer, begin, COUNTED_SECONDS, latency_ms)
        if sum(joules) > 0:
            return _energy(joules, "measured", source)
        why_not = f"{source.split(':')[0]} stands still"  # as in many virtual machines
    seconds = _blocks(infer, _processor_time, ESTIMATED_SECONDS, latency_ms)
    model = f"processor time x {WATTS_PER_BUSY_CORE} W a busy core (Cloud Carbon Footprint's mean server under load)"
    without_gpu = "; the GPU's own energy is not in it" if hardware.provider == "cuda" else ""
    return _energy([WATTS_PER_BUSY_CORE * one for one in seconds], "estimated", f"{model}, for {why_not}{without_gpu}")


def _counter(hardware: Hardware, powercap: Path) -> tuple[tuple[Reading, str] | None, str]:
    """How to count and what that includes, or why it cannot be counted."""
    if hardware.provider == "cuda":
        gpu = Nvml.find(int(hardware.provider_options.get("device_id", 0)))
        if isinstance(gpu, str):
            return None, gpu
        what = f"NVML: the whole of {gpu.name}, its idle power and others' work included; not the processor"
        return (_since(gpu.read, lambda before, after: after - before), what), ""
    packages = Rapl.find(powercap)
    if isinstance(packages, str):
        return None, packages
    share = f"{hardware.threads} of {read_machine().cores} cores were asked to work"
    names = ", ".join(packages.packages)
    what = f"RAPL {names}: the whole package, idle cores and others' work included; {share}"
    return (_since(packages.read, packages.between), what), ""


def _since(read: Callable[[], Any], between: Callable[[Any, Any], float]) -> Reading:
    def begin() -> Callable[[], float]:
        before = read()
        return lambda: between(before, read())

    return begin


def _processor_time() -> Callable[[], float]:
    """Seconds of all this process's threads, waiting ones that spin included."""
    before = time.process_time()
    return lambda: time.process_time() - before


def _blocks(infer: Callable[[], None], begin: Reading, seconds: float, latency_ms: float) -> list[float]:
    """What each block of calls took, for one call."""
    calls = max(1, ceil(1e3 * seconds / latency_ms))
    found = []
    for _ in range(BLOCKS):
        end = begin()
        for _ in range(calls):
            infer()
        found.append(end() / calls)
    return found


def _energy(joules: list[float], kind: Literal["measured", "estimated"], source: str) -> Energy:
    half = STUDENT_95 * stdev(joules) / sqrt(len(joules))
    middle = mean(joules)
    return Energy(1e3 * middle, (1e3 * max(0.0, middle - half), 1e3 * (middle + half)), kind, source)
