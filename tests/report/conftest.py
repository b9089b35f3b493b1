"""A digits run with eight candidates, as the documents of a run, and shapes of it that a report must survive."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from mlites.files import digest_json
from mlites.hardware.paired import Drop
from mlites.recipe import Recipe
from mlites.report.details import Details
from mlites.report.summary import Step, Summary, summarize

DIGITS = [str(digit) for digit in range(10)]
TEACHER = {"accuracy": 0.9889, "p50": 0.1312, "size": 1_090_214, "memory": 88_604_672}
STUDENT = {"pass": "distill", "student": {"family": "resnet", "depth": 8, "width": 8}}
SMALL = {"pass": "distill", "student": {"family": "mlp", "hidden": [32]}}
STATIC, DYNAMIC = {"pass": "quantize"}, {"pass": "quantize", "method": "dynamic"}
HALF = {"pass": "prune", "amount": 0.5}
SPARSE = {"pass": "prune", "method": "magnitude", "amount": 0.9}
CANDIDATES: list[tuple[str, list[dict[str, Any]], float, float, int, int]] = [
    # name, passes, accuracy, p50 in ms, bytes, peak memory
    ("int8", [STATIC], 0.9889, 0.0712, 301_502, 86_245_376),
    ("int8-dynamic", [DYNAMIC], 0.9861, 0.2581, 297_811, 87_011_328),
    ("pruned", [HALF], 0.9833, 0.0644, 282_777, 84_180_992),
    ("pruned-int8", [HALF, STATIC], 0.9806, 0.0431, 88_942, 83_230_720),
    ("sparse", [SPARSE], 0.9722, 0.1308, 1_090_214, 88_604_672),
    ("student", [STUDENT], 0.9833, 0.0254, 83_120, 80_424_960),
    ("student-int8", [STUDENT, STATIC], 0.9806, 0.0182, 31_377, 79_863_808),
    ("mlp-int8", [SMALL, STATIC], 0.9528, 0.0061, 6_204, 78_643_200),
]


PASSES: dict[str, Callable[[dict[str, Any]], str]] = {
    "distill": lambda step: "distill resnet 8x8" if step is STUDENT else "distill mlp 32",
    "prune": lambda step: f"prune {step.get('method', 'structured')} {step.get('amount', 0.5):.0%}",
    "quantize": lambda step: f"quantize {step.get('method', 'static')}",
}


def _latency(p50: float) -> dict[str, float]:
    return {"p50": p50, "p95": round(p50 * 1.18, 5), "p99": round(p50 * 1.42, 5)}


def _confusion(classes: int, accuracy: float, seed: int, rows: int = 36) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    counts = np.diag(np.full(classes, rows))
    for _ in range(round((1 - accuracy) * classes * rows)):
        true, predicted = generator.integers(classes), generator.integers(classes)
        if true != predicted and counts[true, true]:
            counts[true, true] -= 1
            counts[true, predicted] += 1
    return [[int(count) for count in row] for row in counts]


def _history(epochs: int, best: float, seed: int) -> list[dict[str, float]]:
    noise = np.random.default_rng(seed).normal(0, 0.006, (epochs, 3))
    lines = []
    for index in range(epochs):
        progress = 1 - math.exp(-4.5 * (index + 1) / epochs)
        lines.append(
            {
                "epoch": index + 1,
                "train_loss": float(2.3 * (1 - progress) + 0.03 + abs(noise[index, 0])),
                "validation_loss": float(2.2 * (1 - progress) + 0.07 + abs(noise[index, 1])),
                "validation_accuracy": float(min(0.1 + (best - 0.1) * progress + noise[index, 2] / 3, 1.0)),
                "learning_rate": 0.05 * (1 - index / epochs),
            }
        )
    return lines


LAYERS = ["stem", *(f"blocks.{block}.conv{number}" for block in range(3) for number in (1, 2)), "output"]
COST = {"parameters": 77_850, "macs": 1_021_568}  # of the teacher


def _facts(step: dict[str, Any], cost: dict[str, int]) -> dict[str, Any]:
    """What a pass found, in the shapes in which passes write it."""
    if step["pass"] == "distill":
        paid = step is STUDENT
        return {
            "teacher_validation_accuracy": 0.993, "agreement": 0.981,
            "control_validation_accuracy": 0.9722 if paid else 0.9444, "gain_points": 1.39 if paid else 0.1,
            "p_value": 0.008 if paid else 0.4, "paid": paid, "verdict": "better" if paid else "not distinguishable",
        }  # fmt: skip
    if step.get("method") == "magnitude":
        rates = {name: round(0.95 - index / 50, 4) for index, name in enumerate(LAYERS)}
        zeros = {"weights": 77_000, "zeros": 69_300, "sparsity": 0.9, "rates": rates}
        return {**zeros, "validation_accuracy_before_tuning": 0.4931}
    if step["pass"] == "prune":
        layers = {
            name: {"rate": 0.6 - index / 20, "drops_points": [0.0, 0.69 * index, 2.08 * index, 9.72 * index]}
            for index, name in enumerate(LAYERS)
        }
        return {
            "channels_before": 112, "channels_after": 64, **{f"{key}_before": value for key, value in COST.items()},
            **{f"{key}_after": value for key, value in cost.items()}, "validation_accuracy_before_tuning": 0.8611,
            "kept_whole": {"output": "it gives the classes", "stem": "its channels are added to a shortcut"},
            "sensitivity": {"probed_rates": [0.25, 0.5, 0.75, 0.875], "layers": layers, "protected": ["output"]},
        }  # fmt: skip
    return {
        "reduce_range": False, "evaluations": 4, "layers_quantized": 6, "layers_kept_float": ["stem", "output"],
        "drop_points_before_rollback": 2.1, "drop_points_after": 0.3, "size_bytes_before": 301_000,
        "size_bytes": 83_400, "something_new": {"a": [1, 2]}, "warm_up_seconds": 1.5,
    }  # fmt: skip


def _provenance(passes: list[dict[str, Any]], best: float) -> list[dict[str, Any]]:
    """Chains that share their first passes share those steps."""
    steps: list[dict[str, Any]] = [
        {"step": "train", "options": {"architecture": {"family": "resnet", "depth": 8, "width": 16}}, "seed": 0,
         "data": "d" * 64, "history": _history(20, 0.993, 1), "metrics": {"validation_accuracy": 0.993, **COST}}
    ]  # fmt: skip
    defaults = {"prune": {"method": "structured"}, "quantize": {"method": "static"}, "distill": {"temperature": 4.0}}
    cost = dict(COST)
    for step in passes:
        kind = step["pass"]
        options = {**defaults[kind], **{key: value for key, value in step.items() if key != "pass"}}
        seed = int(digest_json([steps[-1]["options"], options])[:6], 16)
        history = [] if kind == "quantize" else _history(20 if kind == "distill" else 5, best, seed)
        cost = costs(step, cost)
        counted = {} if kind == "quantize" else cost
        accuracy = {"validation_accuracy": round(best - 0.0069 * len(steps), 4)}
        metrics = {**accuracy, **counted, **_facts(step, cost)}
        if kind == "quantize":
            exported = {"max_abs_difference": 3.1e-6, "agreement": 1.0, "validation_accuracy": best}
            steps.append({"step": "export", "options": {}, "data": "d" * 64, "metrics": exported})
        entry = {"step": kind, "options": options, "seed": 0, "data": "d" * 64}
        steps.append({**entry, "history": history, "metrics": metrics})
    return steps


def costs(step: dict[str, Any], before: dict[str, int]) -> dict[str, int]:
    """Parameters and multiply-accumulates after a pass."""
    if step["pass"] == "distill":
        small = step is not STUDENT
        return {"parameters": 2_410 if small else 5_010, "macs": 2_368 if small else 66_176}
    share = 0.3 if step["pass"] == "prune" and step.get("method") != "magnitude" else 1.0
    return {key: round(share * value) for key, value in before.items()}


PEAKS = {"fp32_gmacs_per_second": 51.2, "int8_gmacs_per_second": 643.0, "stream_gbytes_per_second": 11.8,
         "cached_gbytes_per_second": [[1 << 19, 61.0], [1 << 22, 38.0]], "call_us": 6.9, "node_us": 0.52}  # fmt: skip
NODES = [  # name, type, share, what is to be said of it
    ("/blocks.0/conv1/Conv", "Conv", 0.41, None),
    ("/stem/Conv_quant", "QLinearConv", 0.22, "3 input channels fill no vector: keep this layer in float"),
    ("/output/QuantizeLinear", "QuantizeLinear", 0.08, "QDQ not fused here: the operator between runs in float"),
]


def _running(p50: float, macs: int, quantized: bool) -> dict[str, Any]:
    """Throughput, cold start, energy, roofline and operators of a model of that latency."""
    moved = macs // (30 if quantized else 8) + 600
    intensity = macs / moved
    peak = PEAKS["int8_gmacs_per_second" if quantized else "fp32_gmacs_per_second"]
    limit = macs / min(peak, intensity * PEAKS["stream_gbytes_per_second"]) / 1e6
    rates = [(1, 1, 1000 / p50), (8, 1, 2600 / p50), (32, 1, 3400 / p50), (8, 2, 3900 / p50)]
    return {
        "latency_interval_ms": {
            key: [value * 0.97, value * (1.03 if key == "p50" else 1.12)] for key, value in _latency(p50).items()
        },
        "throughput": [
            {"batch": batch, "streams": streams, "rows_per_second": rate, "interval": [rate * 0.96, rate * 1.03]}
            for batch, streams, rate in rates
        ],
        "cold_start_ms": {"load": 4.1 + 20 * p50, "first": 3 * p50 + 0.2},
        "energy": {"millijoules": 11.5 * p50, "interval": None, "kind": "estimated",
                   "source": "11.5 W of one busy core times the latency"},
        "roofline": {"macs": macs, "bytes": moved, "intensity": intensity, "limit_ms": limit,
                     "fraction_of_limit": min(limit / p50, 1.0), "bound": "overhead" if limit < p50 / 4 else "compute"},
        "operators": [
            {"name": name, "op_type": kind, "share": share, "us": 1000 * share * p50, "hint": hint}
            for name, kind, share, hint in NODES
        ],
    }  # fmt: skip


def _answers(confusion: list[list[int]], accuracy: float) -> dict[str, Any]:
    """Recall of each class and calibration of such answers."""
    bins = [(4, 0.45, 0.5), (6, 0.58, 0.5), (9, 0.7, 0.67), (14, 0.83, 0.71), (27, 0.9, 0.85), (300, 0.99, accuracy)]
    calibration = [{"rows": rows, "confidence": sure, "accuracy": right} for rows, sure, right in bins]
    ece = sum(rows * abs(sure - right) for rows, sure, right in bins) / sum(rows for rows, _, _ in bins)
    per_class = [row[index] / sum(row) for index, row in enumerate(confusion)]
    return {"confusion": confusion, "per_class": per_class, "calibration": calibration, "ece": ece}


def make_failure(name: str, step: str, error: str) -> dict[str, Any]:
    """The verdict of a candidate that could not be judged."""
    failed = {"step": step, "error": error}
    passes = ["quantize static"]
    return {"format": "mlites-verdict/2", "candidate": name, "passes": passes, "failed": failed, "baseline": None}


def make_verdict(
    name: str, passes: list[dict[str, Any]], accuracy: float, p50: float, size: int, memory: int, classes: int = 10
) -> dict[str, Any]:
    speedup, cost = TEACHER["p50"] / p50, dict(COST)
    for step in passes:
        cost = costs(step, cost)
    quantized = bool(passes) and passes[-1]["pass"] == "quantize"
    over = (0.51 if passes[-1].get("method") == "dynamic" else 1.38) if quantized else None
    warnings = []
    if over is not None and over < 1:
        warnings.append("quantization made it slower: 0.51x its FP32 form (95% interval 0.50 to 0.52)")
    if SMALL in passes:
        told = "+0.1 points over the same student trained without the teacher, p = 0.4"
        warnings.append(f"distillation did not pay: {told}")
    matrices = _confusion(classes, TEACHER["accuracy"], 7), _confusion(classes, accuracy, len(name))
    drops = []
    for index, (before, after) in enumerate(zip(*matrices, strict=True)):
        apart = before[index] - after[index]
        drops.append(Drop(sum(before), max(apart, 0) + 1, max(-apart, 0) + 1).to_json())
    return {
        "format": "mlites-verdict/2",
        "candidate": name,
        "passes": [PASSES[step["pass"]](step) for step in passes],
        "model": digest_json([name, accuracy]),
        "parents": [digest_json("teacher")],
        "provenance": _provenance(passes, 0.98),
        "machine": {
            "cpu": "Intel(R) Xeon(R) Processor @ 2.70GHz", "isa": ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
            "cores": 2, "threads": 1, "batch": 1, "profile": "server-1core", "provider": "cpu",
            "warnings": ["other processes took 12% of the cores' time while this was measured"],
            "load": {"others_share": 0.12, "steal_share": 0.004}, "peaks": PEAKS,
            "packages": {"onnxruntime": "1.31.1", "numpy": "2.4.6", "torch": "2.13.0", "onnx": "1.23.2"},
        },
        "baseline": {
            "name": "teacher", "model": digest_json("teacher"), "accuracy": TEACHER["accuracy"],
            "latency_ms": _latency(TEACHER["p50"]), "size_bytes": int(TEACHER["size"]),
            "peak_memory_bytes": int(TEACHER["memory"]), "download_bytes": 1_001_344, **COST,
            **_answers(matrices[0], TEACHER["accuracy"]), **_running(TEACHER["p50"], COST["macs"], False),
        },
        "classes": [str(index) for index in range(classes)],
        **_answers(matrices[1], accuracy), **_running(p50, cost["macs"], quantized),
        "accuracy_drop_interval": list(Drop(36 * classes, round(36 * classes * (1 - accuracy)), 4).interval),
        "class_drops": drops,
        "accuracy": accuracy,
        "accuracy_drop_points": round(100 * (TEACHER["accuracy"] - accuracy), 6),
        "latency_ms": _latency(p50),
        "size_bytes": size,
        "peak_memory_bytes": memory,
        "download_bytes": size // (14 if SPARSE in passes else 2 if quantized else 1),
        **cost,
        "speedup": speedup,
        "speedup_over_source": over,
        "speedup_over_source_interval": [over * 0.98, over * 1.02] if over else None,
        "speedup_interval": [speedup * 0.965, speedup * 1.04],
        "size_ratio": TEACHER["size"] / size,
        "agreement": accuracy - 0.004,
        "rounds": 400, "speedup_narrow": name != "sparse", "measured_seconds": 4.2,
        "warnings": warnings,
    }  # fmt: skip


def make_recipe(candidates: list[tuple[str, list[dict[str, Any]], float, float, int, int]]) -> dict[str, Any]:
    return {
        "name": "digits",
        "seed": 0,
        "data": {"source": "digits"},
        "teacher": {"architecture": {"family": "resnet", "depth": 8, "width": 16}},
        "candidates": [{"name": name, "passes": passes} for name, passes, *_ in candidates],
        "budget": {
            "accuracy_drop_points": 1.0,
            "class_drop_points": 9.0,
            "p95_ms": 0.03,
            "energy_mj": 4.0,
            "speedup": 4.0,
            "size_kib": 256,
        },
    }


def make_selection(
    verdicts: list[dict[str, Any]], selected: str, budget: dict[str, Any], met: bool = True
) -> dict[str, Any]:
    """By the rules of the budget, written independently of the library."""
    lines = []
    for one in verdicts:
        if one.get("failed"):
            reason = f"failed at {one['failed']['step']}: {one['failed']['error']}"
            kept = {key: one[key] for key in ("candidate", "passes", "failed")}
            lines.append({**kept, "on_front": False, "within_budget": False, "lines": [], "reasons": [reason]})
            continue
        judged = make_lines(one, budget)
        words = {"fail": "missed", "undecided": "undecided"}
        reasons = [f"{line['line']}: {words[line['verdict']]}" for line in judged if line["verdict"] != "pass"]
        beaten = any(
            other["accuracy"] >= one["accuracy"] and other["speedup"] >= one["speedup"]
            and other["size_bytes"] <= one["size_bytes"] and other is not one
            for other in verdicts if not other.get("failed")
        )  # fmt: skip
        kept = {key: value for key, value in one.items() if key not in ("provenance", "baseline", "format")}
        lines.append(
            {**kept, "on_front": not beaten, "within_budget": not reasons, "reasons": reasons, "lines": judged}
        )
    met_words = "meets every line of the budget and is the fastest that does"
    missed_words = "is the closest, and misses the budget: it is 7.2x as fast, the budget asks for 40x"
    measured = [one for one in verdicts if not one.get("failed")]
    need = (
        "It needs 450% more speedup at this accuracy; no candidate has it, nearest to it: mlp-int8 (speedup 21.51 x)."
    )
    return {
        "format": "mlites-selection/2",
        "selected": selected,
        "model": next(one["model"] for one in measured if one["candidate"] == selected),
        "reason": f"{selected} {met_words if met else missed_words}",
        "within_budget": met,
        "nearest": [] if met else [{"line": "speedup", "sentence": need, "candidates": []}],
        "front": {
            "axes": ["error", "time", "size", "memory", "energy"], "hypervolume": 0.0912,
            "reference": {"error": 0.9, "time": 2.0, "size": 2.0, "memory": 2.0, "energy": 2.0},
            "reference_name": "twice the teacher's time, size, memory and energy, at the accuracy of guessing",
        },
        "baseline": measured[0]["baseline"],
        "candidates": lines,
        "verdicts": [digest_json(one) for one in verdicts],
    }  # fmt: skip


def make_lines(one: dict[str, Any], budget: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a budget for a verdict."""
    figures: list[tuple[str, float, float, str, Any]] = [
        ("accuracy drop", one["accuracy_drop_points"], budget["accuracy_drop_points"], "points", None),
        (
            "loss in a class",
            max(drop["points"] for drop in one["class_drops"]),
            budget["class_drop_points"],
            "points",
            None,
        ),
        ("latency p95", one["latency_ms"]["p95"], budget["p95_ms"], "ms", one["latency_interval_ms"]["p95"]),
        ("speedup", one["speedup"], budget["speedup"], "x", one["speedup_interval"]),
        ("size", one["size_bytes"] / 1024, budget["size_kib"], "KiB", None),
        ("energy", one["energy"]["millijoules"], budget["energy_mj"], "mJ", None),
    ]
    lines = []
    for name, value, limit, unit, interval in figures:
        least = name == "speedup"
        beyond = [edge < limit if least else edge > limit for edge in interval or (value,)]
        verdict = "fail" if all(beyond) else "undecided" if any(beyond) else "pass"
        note = {"energy": "estimated", "loss in a class": "4"}.get(name, "")
        lines.append(
            {"line": name, "value": value, "limit": limit, "unit": unit, "bound": "at least" if least else "at most",
             "margin": value - limit if least else limit - value, "interval": interval, "verdict": verdict,
             "note": note}
        )  # fmt: skip
    return lines


def make_deployment(status: str = "deployed") -> dict[str, Any]:
    document: dict[str, Any] = {"format": "mlites-deployment/1", "status": status, "model": "digits", "reasons": []}
    if status != "deployed":
        return {**document, "version": None, "reasons": ["speed-up 7.2x is below 40x"]}
    return document | {
        "version": 3, "previous_version": 2, "repository": "s3://mlites/repository/digits", "sha256": "5" * 64,
        "model_digest": "6" * 64, "release": "7" * 64, "previous_release": "8" * 64,
        "triton_url": "http://127.0.0.1:8000", "grpc_url": "127.0.0.1:8001",
        "golden": {"samples": 16, "max_abs_difference": 1.9e-6, "agreement": 1.0},
    }  # fmt: skip


def make_data(classes: list[str]) -> dict[str, Any]:
    checks: list[dict[str, Any]] = [
        {"name": "enough rows", "column": None, "critical": True, "success": True, "observed": "1797",
         "rule": "at least 20 rows"},
        {"name": "labels are classes", "column": "label", "critical": True, "success": True,
         "observed": classes[:12], "rule": "0 to 9"},
        {"name": "few duplicates", "column": "duplicate share", "critical": False, "success": False,
         "observed": 0.0556, "rule": "at most 1% of the rows"},
    ]  # fmt: skip
    for index in range(64):
        column = f"pixel_{index}"
        for name, rule in (("values in range", "0 to 255"), ("no missing values", "0 nulls")):
            checks.append(
                {"name": name, "column": column, "critical": True, "success": True, "observed": "0 to 16", "rule": rule}
            )
    return {
        "format": "mlites-data-document/1",
        "digest": "d" * 64,
        "source": "digits",
        "rows": {"train": 1293, "validation": 144, "test": 360},
        "classes": classes,
        "class_counts": {
            split: {name: share + index % 3 for index, name in enumerate(classes)}
            for split, share in (("train", 128), ("validation", 14), ("test", 36))
        },
        "duplicates_removed_across_splits": 0,
        "checks": checks,
        "success": True,
    }


STEPS = [
    *(
        ("prepare-data", 6.41),
        ("train-teacher", 41.86),
        ("export", 1.92),
        ("quantize", 2.31),
        ("quantize-dynamic", 0.84),
    ),
    *(("prune", 9.7), ("distill", 24.05), *((f"validate-{one[0]}", 6.2) for one in CANDIDATES), ("select", 0.21)),
    *(("gate", 0.09), ("deploy", 3.37), ("report", 0.62)),
]


def make_run(
    status: str = "deployed", candidates: Any = CANDIDATES, classes: list[str] = DIGITS, broken: int = 0
) -> tuple[Summary, Details]:
    """Summary and details as the runner hands them to the page."""
    recipe = make_recipe(candidates)
    data = make_data(classes)
    verdicts = [make_verdict(*one, classes=len(classes)) for one in candidates]
    for index in range(broken):
        error = "model.onnx: not an ONNX file, or cut short; export the model again"
        verdicts.insert(2 * index, make_failure(f"broken-{index}", "validate", error))
    selected = "student-int8" if any(one[0] == "student-int8" for one in candidates) else candidates[0][0]
    if status == "rejected":
        recipe["budget"] |= {"speedup": 40.0, "p95_ms": 0.023}
    summary = summarize(
        "digits-20260512-101500",
        Recipe.model_validate(recipe),
        make_selection(verdicts, selected, recipe["budget"], status == "deployed"),
        make_deployment(status),
        data,
        verdicts,
    )
    steps = [Step(name=name, seconds=seconds, cached=name == "prepare-data") for name, seconds in STEPS]
    details = {
        "recipe_yaml": yaml.safe_dump(recipe, sort_keys=False),
        "code_digest": "c" * 64,
        "git_commit": "e78e25c" + "0" * 33,
        "data": data,
        "verdicts": verdicts,
        "signature": {
            "input_shape": [1, 8, 8],
            "preprocessing": {"scale": 0.00392156862745098, "mean": [0.3053], "std": [0.376]},
        },
    }
    return summary.model_copy(update={"steps": steps, "overhead_seconds": 2.4}), Details.model_validate(details)


def make_failed_run() -> tuple[Summary, Details]:
    """Three candidates measured, then the machine ran out of memory."""
    recipe, data = make_recipe(CANDIDATES), make_data(DIGITS)
    verdicts = [make_verdict(*one) for one in CANDIDATES[:3]]
    error = "validate-pruned-int8: MemoryError: cannot allocate 12.0 GiB for the calibration table"
    summary = summarize(
        "digits-20260512-111500",
        Recipe.model_validate(recipe),
        None,
        None,
        data,
        verdicts,
        error,
        "validate-pruned-int8",
    )
    steps = [Step(name=name, seconds=seconds, cached=seconds < 9) for name, seconds in STEPS[:11]]
    details = Details.model_validate({"recipe_yaml": yaml.safe_dump(recipe), "data": data, "verdicts": verdicts})
    return summary.model_copy(update={"steps": steps}), details


def make_many(count: int) -> list[tuple[str, list[dict[str, Any]], float, float, int, int]]:
    """Crowded candidates, one in seventeen of them far off."""
    generator = np.random.default_rng(3)
    many = []
    for index in range(count):
        accuracy = float(np.clip(0.99 - generator.exponential(0.012) - (0.1 if index % 17 == 5 else 0), 0.1, 1))
        passes = [HALF | {"amount": round(0.3 + index / 100, 2)}, STATIC]
        p50, size = 0.13 / math.exp(generator.uniform(-0.5, 3.2)), int(1e6 / math.exp(generator.uniform(0, 4)))
        many.append(
            (f"resnet-{index}-pruned-int8" if index % 4 else f"c{index}", passes, accuracy, p50, size, 80_000_000)
        )
    return many


@pytest.fixture
def run() -> Callable[..., tuple[Summary, Details]]:
    return make_run


@pytest.fixture
def failed_run() -> tuple[Summary, Details]:
    return make_failed_run()


@pytest.fixture
def many() -> Callable[[int], Any]:
    return make_many


@pytest.fixture
def verdict() -> Callable[[str], dict[str, Any]]:
    """The verdict document of a candidate of that run."""
    return lambda name: make_verdict(*next(one for one in CANDIDATES if one[0] == name))


@pytest.fixture
def data_document() -> dict[str, Any]:
    return make_data(DIGITS)
