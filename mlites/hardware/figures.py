"""Figures that a verdict and `mlites measure` give under the same names."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.hardware.energy import measure_energy
from mlites.hardware.latency import Latency
from mlites.hardware.load import Load
from mlites.hardware.machine import Machine, check_profile
from mlites.hardware.memory import measure_process
from mlites.hardware.operators import profile_operators
from mlites.hardware.roofline import Peaks, place
from mlites.hardware.throughput import measure_throughput
from mlites.recipe import Hardware

Document = dict[str, Any]


def describe_machine(machine: Machine, hardware: Hardware, load: Load, peaks: Peaks | None) -> Document:
    """What was measured on, by which profile, and what makes the figures doubtful."""
    return {
        **machine.to_json(),
        "profile": hardware.name,
        "provider": hardware.provider,
        "threads": hardware.threads,
        "batch": hardware.batch,
        "warnings": [*check_profile(machine, hardware), *load.warnings()],
        "load": load.to_json(),
        "peaks": peaks and peaks.to_json(),
    }


def measure_alone(path: Path, rows: NDArray[np.float32], hardware: Hardware) -> Document:
    """Memory, cold start and throughput, which processes of their own find."""
    throughput = [one.to_json() for one in measure_throughput(path, rows, hardware)]
    return {**measure_process(path, rows, hardware).to_json(), "throughput": throughput}


def describe_latency(latency: Latency) -> Document:
    """Percentiles with their intervals."""
    return {
        "latency_ms": latency.percentiles_ms(),
        "latency_interval_ms": {name: list(edges) for name, edges in latency.percentile_intervals_ms().items()},
    }


def explain(
    path: Path, rows: NDArray[np.float32], latency: Latency, hardware: Hardware, peaks: Peaks | None
) -> Document:
    """What the time is spent on, and the energy it takes.

    Args:
        path: ONNX file.
        rows: real inputs (n, ...).
        latency: of the file.
        hardware: what it was measured by.
        peaks: of the processor; where None, there is neither roofline nor a list of operators.
    """
    median_ms = latency.percentiles_ms()["p50"]
    energy = measure_energy(path, rows, hardware, median_ms).to_json()
    if peaks is None:
        return {"energy": energy, "roofline": None, "operators": []}
    try:
        roofline = place(onnx.load(path), rows, median_ms, hardware.batch, peaks).to_json()
    except InputError:  # ONNX Runtime tells the shapes of no operator of it
        roofline = None
    operators = profile_operators(path, rows, threads=hardware.threads, batch=hardware.batch)
    return {"energy": energy, "roofline": roofline, "operators": [one.to_json() for one in operators]}
