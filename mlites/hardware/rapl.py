"""RAPL, the energy counters of x86 processors, as the Linux kernel shows them.

Source: Documentation/power/powercap/powercap.rst of the Linux kernel; David et al. (2010), RAPL.
"""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """The counters of all processor packages: cores, caches and the rest of each package, whoever uses it."""

    def __init__(self, packages: dict[str, Path]) -> None:
        self.packages = packages
        self._ranges = {name: int((folder / "max_energy_range_uj").read_text()) for name, folder in packages.items()}

    @classmethod
    def find(cls, root: Path = POWERCAP) -> "Rapl | str":
        """The counters, or why there are none."""
        packages: dict[str, Path] = {}
        if not root.is_dir():
            return "this machine shows no RAPL"
        for folder in sorted(root.glob("intel-rapl:*")):  # on AMD, too
            try:
                name = (folder / "name").read_text().strip()
                if name.startswith("package"):  # subdomains, such as cores, are parts of it; psys is the whole machine
                    int((folder / "energy_uj").read_text())
                    packages[name] = folder
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "no number in it"
                return f"RAPL is not readable: {folder.name}: {reason}"
        return cls(packages) if packages else "this machine shows no RAPL package"

    def read(self) -> dict[str, int]:
        """Microjoules since some moment, of each package."""
        return {name: int((folder / "energy_uj").read_text()) for name, folder in self.packages.items()}

    def between(self, before: dict[str, int], after: dict[str, int]) -> float:
        """Joules between two readings no more than one turn of the counters apart."""
        turns = {name: self._ranges[name] if after[name] < before[name] else 0 for name in before}
        return sum(after[name] - before[name] + turns[name] for name in before) / 1e6
