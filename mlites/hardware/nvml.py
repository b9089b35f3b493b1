"""The energy counter of an NVIDIA GPU, read through the driver's own library; nothing needs to be installed.

Source: NVML API Reference, nvmlDeviceGetTotalEnergyConsumption: millijoules since the driver was loaded (Volta on).
"""

import ctypes
from collections.abc import Callable
from typing import Any

LIBRARY = "libnvidia-ml.so.1"


class Nvml:
    """One GPU's counter."""

    def __init__(self, library: Any, device: ctypes.c_void_p, name: str) -> None:
        self._library, self._device, self.name = library, device, name

    @classmethod
    def find(cls, index: int = 0, load: Callable[[str], Any] = ctypes.CDLL) -> "Nvml | str":
        """The counter of a GPU by its number, or why there is none; ``load`` opens the driver's library."""
        try:
            library = load(LIBRARY)
        except OSError:
            return "this machine has no NVIDIA driver"
        if code := library.nvmlInit_v2():
            return f"NVML does not start: code {code}"
        device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        if code := library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
            return f"NVML finds no GPU {index}: code {code}"
        library.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name)))
        found = cls(library, device, name.value.decode(errors="replace"))
        return found if found._counter() is not None else f"{found.name} counts no energy"

    def read(self) -> float:
        """Joules since some moment.

        Raises:
            OSError: the GPU no longer answers.
        """
        millijoules = self._counter()
        if millijoules is None:
            raise OSError(f"{self.name} no longer counts energy")
        return millijoules / 1e3

    def _counter(self) -> int | None:
        value = ctypes.c_ulonglong()
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(value))
        return None if failed else value.value
