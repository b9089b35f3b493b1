"""Verdict documents of candidates that were never measured."""

from typing import Any

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
) -> dict[str, Any]:
    """As `validate` writes them; ``noise`` is half the relative width of the speedup's interval."""
    p50 = teacher_ms / speedup
    return {
        "format": "mlites-verdict/1",
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
            "confusion": [[1]],
        },
        "accuracy": accuracy,
        "accuracy_drop_points": 100 * (TEACHER_ACCURACY - accuracy),
        "latency_ms": {"p50": p50, "p95": 1.5 * p50, "p99": 2 * p50},
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
        "confusion": [[1]],
        "rounds": 100,
        "warnings": list(warnings),
    }
