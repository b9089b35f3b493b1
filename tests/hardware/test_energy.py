import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mlites.errors import InputError
from mlites.hardware.energy import WATTS_PER_BUSY_CORE, measure_energy
from mlites.hardware.nvml import Nvml
from mlites.hardware.rapl import Rapl
from mlites.recipe import Hardware
from tests.hardware.networks import make_model, make_weights

ROWS = np.ones((3, 6), np.float32)
Save = Callable[[onnx.ModelProto | bytes], Path]


def domain(root: Path, folder: str, name: str, energy: int | str, largest: int = 262_143_328_850) -> Path:
    """One counter as the kernel lays it out."""
    place = root / folder
    place.mkdir(parents=True)
    for key, value in {"name": name, "energy_uj": energy, "max_energy_range_uj": largest}.items():
        (place / key).write_text(f"{value}\n")
    return place


def test_packages_add_up_and_their_parts_are_not_counted_twice(tmp_path: Path):
    first = domain(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 600_000)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    domain(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    rapl = Rapl.find(tmp_path)
    assert isinstance(rapl, Rapl)
    before = rapl.read()
    (first / "energy_uj").write_text("3500000\n")
    (second / "energy_uj").write_text("5250000\n")
    assert rapl.between(before, rapl.read()) == pytest.approx(2.5 + 0.25)


def test_a_counter_that_began_anew_is_taken_for_one_turn(tmp_path: Path):
    place = domain(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    rapl = Rapl.find(tmp_path)
    assert isinstance(rapl, Rapl)
    before = rapl.read()
    (place / "energy_uj").write_text("671150\n")
    assert rapl.between(before, rapl.read()) == pytest.approx((262_143_328_850 - 262_143_000_000 + 671_150) / 1e6)


def test_why_there_is_no_counter_is_said(tmp_path: Path):
    assert Rapl.find(tmp_path / "absent") == "this machine shows no RAPL"
    assert Rapl.find(tmp_path) == "this machine shows no RAPL package"
    place = domain(tmp_path, "intel-rapl:0", "package-0", "")
    assert Rapl.find(tmp_path) == "RAPL is not readable: intel-rapl:0: no number in it"
    (place / "energy_uj").unlink()
    (place / "energy_uj").mkdir()  # unreadable for root, too
    assert Rapl.find(tmp_path) == "RAPL is not readable: intel-rapl:0: Is a directory"


@contextmanager
def running(counter: Path, watts: float) -> Iterator[None]:
    """A package that takes so many watts, as its counter tells."""
    over = threading.Event()
    begin = time.monotonic()

    def count() -> None:
        while not over.is_set():
            beside = counter.with_name("next")
            beside.write_text(f"{round(1e6 * watts * (time.monotonic() - begin))}\n")
            beside.replace(counter)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_package_that_counts_gives_a_measured_figure_with_its_share(save: Save, tmp_path: Path):
    path = save(make_model(make_weights((512, 512))))
    counter = domain(tmp_path / "powercap", "intel-rapl:0", "package-0", 0) / "energy_uj"
    with running(counter, watts=20.0):
        begin = time.monotonic()
        found = measure_energy(path, ROWS, Hardware(), 10.0, tmp_path / "powercap")
        spent = time.monotonic() - begin
    assert found.kind == "measured"
    assert found.source.startswith("RAPL package-0: the whole package, idle cores and others' work included; 1 of ")
    assert 0 < found.millijoules <= 1e3 * 20.0 * spent / 200  # 10 blocks of 20 calls
    low, high = found.interval
    assert low <= found.millijoules <= high
    assert found.to_json()["interval"] == [low, high]


def test_without_a_counter_processor_time_is_priced_and_the_model_is_stated(save: Save, tmp_path: Path):
    path = save(make_model(make_weights((64,))))
    begin = time.process_time()
    found = measure_energy(path, ROWS, Hardware(), 0.05, tmp_path)
    spent = time.process_time() - begin
    assert found.kind == "estimated"
    assert "3.5 W a busy core" in found.source and found.source.endswith("for this machine shows no RAPL package")
    assert 0 < found.millijoules <= 1e3 * WATTS_PER_BUSY_CORE * spent / 10_000  # 10 blocks of 1000 calls


def test_a_counter_that_stands_still_is_not_believed(save: Save, tmp_path: Path):
    domain(tmp_path / "powercap", "intel-rapl:0", "package-0", 7)
    found = measure_energy(save(make_model(make_weights())), ROWS, Hardware(), 10.0, tmp_path / "powercap")
    assert found.kind == "estimated" and found.source.endswith("for RAPL package-0 stands still")


class Driver:
    """A library laid out as NVML's, of C functions: one GPU whose counter starts at 5 J and takes 0.25 J a reading."""

    def __init__(self, start: int = 0, energy: int = 0) -> None:
        number, place = ctypes.c_int, ctypes.c_void_p
        self.millijoules = 5000
        self.nvmlInit_v2 = ctypes.CFUNCTYPE(number)(lambda: start)
        self.nvmlDeviceGetHandleByIndex_v2 = ctypes.CFUNCTYPE(number, ctypes.c_uint, place)(
            lambda index, handle: 0 if index == 0 else 2
        )
        self.nvmlDeviceGetName = ctypes.CFUNCTYPE(number, place, place, ctypes.c_uint)(self.name)
        kind = ctypes.CFUNCTYPE(number, place, ctypes.POINTER(ctypes.c_ulonglong))
        self.nvmlDeviceGetTotalEnergyConsumption = kind(lambda _, value: energy or self.count(value))

    def name(self, device: int, target: int, size: int) -> int:
        ctypes.memmove(target, b"NVIDIA H100\0", 12)
        return 0

    def count(self, value: Any) -> int:
        self.millijoules += 250
        value[0] = self.millijoules
        return 0


def test_a_gpus_counter_is_read_in_joules():
    found = Nvml.find(0, lambda name: Driver())
    assert isinstance(found, Nvml) and found.name == "NVIDIA H100"
    before = found.read()
    assert found.read() - before == pytest.approx(0.25)


def test_why_a_gpu_is_not_counted_is_said():
    assert Nvml.find(0, lambda name: Driver(start=9)) == "NVML does not start: code 9"
    assert Nvml.find(3, lambda name: Driver()) == "NVML finds no GPU 3: code 2"
    assert Nvml.find(0, lambda name: Driver(energy=3)) == "NVIDIA H100 counts no energy"

    def absent(name: str) -> Driver:
        raise OSError(name)

    assert Nvml.find(0, absent) == "this machine has no NVIDIA driver"
    lost = Nvml.find(0, lambda name: Driver())
    assert isinstance(lost, Nvml)
    lost._library = Driver(energy=15)
    with pytest.raises(OSError, match="NVIDIA H100 no longer counts energy"):
        lost.read()


def test_a_model_that_does_not_run_is_told_in_one_line(save: Save, tmp_path: Path):
    with pytest.raises(InputError, match="ONNX Runtime cannot run it: "):
        measure_energy(save(make_model(make_weights())), np.ones((1, 5), np.float32), Hardware(), 1.0, tmp_path)
