"""Verdict documents of candidates that were never measured."""

from typing import Any

from mlites.hardware.paired import Drop

TEACHER_BYTES, TEACHER_MS, TEACHER_ACCURACY = 1_000_000, 1.0, 0.95


def make_verdict(
    name: str = "one",
    *,
    accuracy: float = 0.95,
    speedup: float = 2.0,
    noise: float = 0.02,
    size: int = 500_000,
    memory: int = 60 << 20,
    teacher_ms: float = TEACHER_MS,
    warnings: tuple[str, ...] = (),
    class_drops: tuple[tuple[int, int, int], ...] = ((30, 0, 0), (30, 0, 0)),
    energy: float | None = 4.0,
) -> dict[str, Any]:
    """As `validate` writes them.

    ``noise`` is half the relative width of the intervals of what is timed or metered; each of ``class_drops`` has rows,
    rows lost and rows won; ``energy`` is in millijoules.
    """
    p50 = teacher_ms / speedup
    latency = {"p50": p50, "p95": 1.5 * p50, "p99": 2 * p50}
    return {
        "format": "mlites-verdict/2",
        "candidate": name,
        "passes": ["quantize static"],
        "model": (name[0] * 64)[:64],
        "parents": [],
        "provenance": [{"step": "train"}],
        "machine": {"cpu": "c", "isa": [], "cores": 1, "threads": 1, "batch": 1, "packages": {}},
        "baseline": {
            "name": "teacher",
            "model": "f" * 64,
            "accuracy": TEACHER_ACCURACY,
            "latency_ms": {"p50": teacher_ms, "p95": 2 * teacher_ms, "p99": 3 * teacher_ms},
            "size_bytes": TEACHER_BYTES,
            "peak_memory_bytes": 70 << 20,
            "download_bytes": TEACHER_BYTES * 9 // 10,
            "parameters": 250_000,
            "macs": 8_000_000,
            "confusion": [[30, 0], [0, 30]],
            "per_class": [1.0, 1.0],
            "ece": 0.02,
            **_running(teacher_ms, 8.0, noise),
        },
        "classes": ["cat", "dog"],
        "accuracy": accuracy,
        "accuracy_drop_points": 100 * (TEACHER_ACCURACY - accuracy),
        "accuracy_drop_interval": [-1.0, 1.0],
        "class_drops": [Drop(*one).to_json() for one in class_drops],
        "per_class": [1.0, 1.0],
        "ece": 0.03,
        "latency_ms": latency,
        "latency_interval_ms": {key: [value * (1 - noise), value * (1 + noise)] for key, value in latency.items()},
        **_running(p50, energy, noise),
        "size_bytes": size,
        "peak_memory_bytes": memory,
        "download_bytes": size * 9 // 10,
        "parameters": 125_000,
        "macs": 4_000_000,
        "speedup": speedup,
        "speedup_interval": [speedup * (1 - noise), speedup * (1 + noise)],
        "speedup_over_source": 1.5,
        "speedup_over_source_interval": [1.4, 1.6],
        "size_ratio": TEACHER_BYTES / size,
        "agreement": 0.9,
        "confusion": [[30, 0], [0, 30]],
        "rounds": 100,
        "warnings": list(warnings),
    }


def make_failed(
    name: str = "broken", step: str = "quantize", error: str = "no layer can be quantized"
) -> dict[str, Any]:
    """Of a candidate that could not be judged."""
    failed = {"step": step, "error": error}
    return {"format": "mlites-verdict/2", "candidate": name, "passes": [step], "failed": failed, "baseline": None}


def _running(p50: float, energy: float | None, noise: float) -> dict[str, Any]:
    rates = [(1, 1, 1000 / p50), (8, 1, 3000 / p50), (8, 2, 2000 / p50)]
    return {
        "throughput": [
            {"batch": batch, "streams": streams, "rows_per_second": rate,
             "interval": [rate * (1 - noise), rate * (1 + noise)]}
            for batch, streams, rate in rates
        ],
        "cold_start_ms": {"load": 30.0, "first": 1.5},
        "energy": None if energy is None else {
            "millijoules": energy, "interval": [energy * (1 - noise), energy * (1 + noise)],
            "kind": "estimated", "source": "a core's share of the processor's power",
        },
    }  # fmt: skip
