"""Whether to train in bfloat16: only where a few steps show that it is faster here."""

import copy
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlites.files import canonical_json, digest_json, write_atomically

Precision = Literal["fp32", "bf16"]
Step = Callable[[nn.Module, Precision], Tensor]
LEAST_MACS = 5e8  # of one step's forward pass; smaller networks gain little, and chance would decide
LEAST_GAIN = 1.25
WARM_UP_STEPS, TIMED_STEPS = 2, 8


def choose_precision(
    asked: Literal["auto", "fp32", "bf16"],
    module: nn.Module,
    step: Step,
    shape: object,
) -> Precision:
    """Settle ``auto``: bf16 where the processor has it, the work is large and it is at least 1.25 times as fast.

    The choice is remembered for this machine, network and shape in the user's cache folder, as a resumed or repeated
    run must decide alike: the two precisions give different weights.

    Args:
        asked: what the options say; anything but auto is returned as it is.
        module: the network, left unchanged.
        step: computes a training loss of the module it is given, in the precision that it is given.
        shape: of a batch; part of what the choice is remembered by.
    """
    device = next(module.parameters()).device
    if asked != "auto":
        return asked
    if not _supported(device):
        return "fp32"
    if _forward_macs(module, step) < LEAST_MACS:
        return "fp32"
    sizes = [[name, list(parameter.shape)] for name, parameter in module.named_parameters()]
    key = digest_json({"machine": _machine(device), "network": sizes, "shape": shape})
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlites" / "precision.json"
    known = _read(path).get(key)
    if known == "bf16" or known == "fp32":
        return known
    chosen: Precision = "bf16" if _gain(module, step) >= LEAST_GAIN else "fp32"
    with suppress(OSError):  # a container may have no folder of its own; then each run settles it
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two steps may settle theirs at once
            write_atomically(path, canonical_json({**_read(path), key: chosen}))
    return chosen


def _forward_macs(module: nn.Module, step: Step) -> float:
    trial = copy.deepcopy(module).train()
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counter:
        step(trial, "fp32")
    return float(counter.get_total_flops()) / 2


def _gain(module: nn.Module, step: Step) -> float:
    """How many times as fast a step is in bf16: the best of interleaved steps, as noise only ever slows."""
    trial = copy.deepcopy(module).train()
    device = next(trial.parameters()).device
    precisions: tuple[Precision, Precision] = ("fp32", "bf16")
    best = dict.fromkeys(precisions, float("inf"))
    with torch.random.fork_rng():
        for index in range(WARM_UP_STEPS + TIMED_STEPS):
            for precision in precisions:
                start = time.perf_counter()
                step(trial, precision).backward()  # type: ignore[no-untyped-call]
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if index >= WARM_UP_STEPS:
                    best[precision] = min(best[precision], time.perf_counter() - start)
    return best["fp32"] / best["bf16"]


def _supported(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool({"amx_bf16", "avx512_bf16"} & set(_processor("flags").split()))


def _machine(device: torch.device) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor("model name")
    return [device.type, platform.machine(), name, str(torch.get_num_threads()), torch.__version__]


def _processor(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
