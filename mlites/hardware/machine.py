"""What a measurement depends on: processor, instruction sets, cores and memory that may be used, package versions."""

import math
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from mlites.files import digest_json
from mlites.recipe.hardware import VNNI, X86, Arm, Hardware

PACKAGES = ("mlites", "numpy", "onnx", "onnxruntime", "torch")


@dataclass(frozen=True)
class Machine:
    """What this process may use of the machine.

    Attributes:
        cpu: model of the processor.
        isa: instruction sets that decide which kernels run, sorted.
        cores: logical cores by affinity and cgroup quota, at least 1.
        memory_bytes: installed, or the cgroup's limit where that is less.
        packages: version of each package that measures; a package not installed is left out.
    """

    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    packages: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa)}


def read_machine() -> Machine:
    """Look at the machine; imports none of the packages whose versions it states."""
    info = Path("/proc/cpuinfo")
    cpu, isa = parse_cpuinfo(info.read_text()) if info.exists() else ("", ())
    quota, limit = cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Machine(
        cpu=cpu or platform.processor() or platform.machine(),
        isa=isa,
        cores=max(1, min(allowed, math.floor(quota))) if quota is not None else allowed,
        memory_bytes=min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), limit or sys.maxsize),
        packages=_versions(),
    )


def fingerprint() -> str:
    """SHA-256 of all that a cached measurement depends on: processor, instruction sets, cores, ONNX Runtime."""
    machine = read_machine()
    runtime = machine.packages.get("onnxruntime")
    return digest_json({"cpu": machine.cpu, "isa": machine.isa, "cores": machine.cores, "onnxruntime": runtime})


def check_profile(machine: Machine, hardware: Hardware) -> list[str]:
    """What this machine lacks of a profile, or has beyond it, one line each, to mark what is measured here.

    Args:
        machine: what measures.
        hardware: what it should be.
    """
    import onnxruntime  # a second that looking at the machine does not need

    from mlites.inference import PROVIDERS

    name, lines = f"profile {hardware.name}", []
    if hardware.cores is not None and hardware.cores > machine.cores:
        lines.append(f"{name} has {hardware.cores} cores, this process may use {machine.cores}")
    elif hardware.threads > machine.cores:
        lines.append(f"{name} runs {hardware.threads} threads on the {machine.cores} cores that this process may use")
    if missing := [one for one in hardware.isa if not _has(machine, one)]:
        lines.append(f"{name} has {', '.join(missing)}, which this processor lacks: it is slower where these count")
    if beyond := [one for one in hardware.without_isa if _has(machine, one)]:
        lines.append(
            f"{name} lacks {', '.join(beyond)}, which this processor has: the target is slower, INT8 above all"
        )
    memory_mib = machine.memory_bytes >> 20
    if hardware.memory_mib is not None and hardware.memory_mib > memory_mib:
        lines.append(f"{name} has {hardware.memory_mib} MiB of memory, here are {memory_mib} MiB")
    if PROVIDERS[hardware.provider] not in onnxruntime.get_available_providers():
        lines.append(f"{name} runs on {hardware.provider}, which this ONNX Runtime does not have")
    if hardware.emulated:
        lines.append(f"{name} is emulated: {hardware.emulated}")
    return lines


def _has(machine: Machine, name: str) -> bool:
    return bool(VNNI & set(machine.isa)) if name == "vnni" else name in machine.isa


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model and sorted instruction sets of the first processor in the text of ``/proc/cpuinfo``.

    An Arm kernel names no model: implementer and part stand in for it.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    cpu = fields.get("model name", "")
    if not cpu and "CPU implementer" in fields:
        cpu = f"Arm implementer {fields['CPU implementer']} part {fields.get('CPU part', 'unknown')}"
    return cpu, tuple(sorted(flags.intersection((*get_args(X86), *get_args(Arm)))))


def cgroup_limits(root: Path, own: Path) -> tuple[float | None, int | None]:
    """Cores and bytes of memory that control groups grant, version 1 or 2, None where nothing is limited.

    Every group from the process's own up to the root counts; the strictest holds.

    Args:
        root: where control groups are mounted.
        own: the process's groups, as in ``/proc/self/cgroup``.
    """
    cores: list[float] = []
    memory: list[int] = []
    lines = own.read_text().splitlines() if own.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = root / controllers if controllers else root
        group = mount / path.lstrip("/")
        # in a container the path may be the host's: then only the mount itself exists
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            quota, period = (*_words(folder / "cpu.max"), "max", "")[:2]
            if quota == "max":
                quota = "".join(_words(folder / "cpu.cfs_quota_us")) or "-1"
                period = "".join(_words(folder / "cpu.cfs_period_us"))
            if int(quota) > 0:
                cores.append(int(quota) / int(period))
            for name in ("memory.max", "memory.limit_in_bytes"):
                memory += [int(word) for word in _words(folder / name) if word != "max"]
    return min(cores, default=None), min(memory, default=None)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # this group does not limit, or does not show it
        return []


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
