import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from mlites.hardware.machine import Machine, cgroup_limits, check_profile, fingerprint, parse_cpuinfo, read_machine
from mlites.recipe import Hardware

X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512_vnni amx_int8 amx_bf16

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd aes asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_the_instruction_sets_that_choose_kernels_are_read_on_x86():
    cpu, isa = parse_cpuinfo(X86)
    assert cpu == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert isa == ("amx_bf16", "amx_int8", "avx", "avx2", "avx512_vnni", "avx512f", "fma")


def test_an_arm_processor_without_a_name_is_known_by_implementer_and_part():
    assert parse_cpuinfo(ARM) == ("Arm implementer 0x41 part 0xd40", ("asimd", "asimddp", "bf16", "i8mm", "sve"))


def test_an_unknown_format_of_cpuinfo_gives_nothing_rather_than_an_error():
    assert parse_cpuinfo("nothing here") == ("", ())


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "1048576"}, "0::/", (1.5, 1 << 20)),
        ({"a/cpu.max": "max 100000", "cpu.max": "50000 100000"}, "0::/a/b", (0.5, None)),
        ({"a/b/memory.max": "4096", "a/memory.max": "max"}, "0::/a/b", (None, 4096)),
        (
            {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_quota_us": "-1"},
            "3:cpuset:/\n1:cpu:/job\n0::/",
            (3.0, None),
        ),
        ({"memory/memory.limit_in_bytes": "8192"}, "4:memory:/on/the/host", (None, 8192)),
        ({}, "0::/", (None, None)),
    ],
)
def test_the_strictest_control_group_counts(
    tmp_path: Path, files: dict[str, str], own: str, expected: tuple[float | None, int | None]
):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert cgroup_limits(tmp_path / "cgroup", tmp_path / "own") == expected


def test_no_control_groups_limit_nothing(tmp_path: Path):
    assert cgroup_limits(tmp_path, tmp_path / "missing") == (None, None)


def test_cores_follow_the_affinity_of_the_process():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert read_machine().cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_memory_is_at_most_what_is_installed_and_versions_are_the_installed_ones():
    machine = read_machine()
    assert 0 < machine.memory_bytes <= psutil.virtual_memory().total
    assert machine.packages["onnxruntime"] == metadata.version("onnxruntime")
    assert machine.to_json()["isa"] == list(machine.isa)


def test_looking_at_the_machine_imports_none_of_the_heavy_packages():
    code = (
        "import sys; from mlites.hardware.machine import fingerprint; print(fingerprint());"
        "assert not {'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(), "another process on this machine finds the same fingerprint"


def test_the_fingerprint_changes_with_the_cores_that_may_be_used():
    allowed = os.sched_getaffinity(0)
    whole = fingerprint()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert (fingerprint() == whole) == (len(allowed) == 1)
    finally:
        os.sched_setaffinity(0, allowed)


SERVER = Machine("server", ("avx2", "avx512_vnni", "avx512f"), 4, 8 << 30, {})


@pytest.mark.parametrize(
    ("profile", "lines"),
    [
        ({}, []),
        ({"cores": 4, "threads": 4, "isa": ("avx2", "vnni"), "memory_mib": 8192}, []),
        ({"cores": 8, "threads": 8}, ["has 8 cores, this process may use 4"]),
        ({"threads": 6}, ["runs 6 threads on the 4 cores"]),
        ({"isa": ("avx2", "amx_int8", "avx_vnni")}, ["has amx_int8, avx_vnni, which this processor lacks"]),
        ({"without_isa": ("vnni", "amx_int8")}, ["lacks vnni, which this processor has: the target is slower"]),
        ({"memory_mib": 9000}, ["has 9000 MiB of memory, here are 8192 MiB"]),
        ({"provider": "cuda"}, ["runs on cuda, which this ONNX Runtime does not have"]),
        ({"emulated": "the clock is not the target's"}, ["is emulated: the clock is not the target's"]),
        ({"cores": 5, "memory_mib": 9000}, ["has 5 cores", "has 9000 MiB"]),
    ],
)
def test_what_the_machine_lacks_of_a_profile_is_told(profile: dict[str, object], lines: list[str]):
    told = check_profile(SERVER, Hardware.model_validate({"name": "mine", **profile}))
    assert len(told) == len(lines)
    for line, part in zip(told, lines, strict=True):
        assert line.startswith("profile mine ") and part in line and "\n" not in line
