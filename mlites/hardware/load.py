"""How busy others kept the machine while something was measured: marked, as no measurement is silently taken.

Source: proc(5), the counters of /proc/stat.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.1  # of the cores' time taken by others; less is what any system does
STOLEN = 0.02  # of the cores' time given to other guests
STAT = Path("/proc/stat")


@dataclass
class Load:
    """Who had the machine's cores while it was watched.

    Attributes:
        others_share: fraction of all cores' time that other processes took; None where the system does not tell.
        steal_share: fraction of all cores' time that the hypervisor gave to other guests; None likewise.
    """

    others_share: float | None = None
    steal_share: float | None = None

    def warnings(self) -> list[str]:
        """One line for each thing that disturbed the measurement."""
        lines = []
        if self.others_share is not None and self.others_share > BUSY:
            lines.append(f"busy machine: other processes took {self.others_share:.0%} of all cores' time")
        if self.steal_share is not None and self.steal_share > STOLEN:
            lines.append(f"busy host: other guests took {self.steal_share:.0%} of all cores' time")
        return lines

    def to_json(self) -> dict[str, float | None]:
        return {"others_share": self.others_share, "steal_share": self.steal_share}


@dataclass(frozen=True)
class Counters:
    """Seconds since the system started, over all cores.

    Attributes:
        cores: how many there are.
        busy: in which a process ran.
        stolen: in which other guests had a core.
    """

    cores: int
    busy: float
    stolen: float


@contextmanager
def watch() -> Iterator[Load]:
    """Find out who has the machine while the body runs; the result is filled in at its end.

    Not counted as others are this process and those of its children that it waited for.
    """
    load = Load()
    before, own, start = _read(), _own_seconds(), time.monotonic()
    try:
        yield load
    finally:
        after, own, seconds = _read(), _own_seconds() - own, time.monotonic() - start
        if before is not None and after is not None and seconds > 0:
            whole = seconds * after.cores
            load.others_share = min(1.0, max(0.0, (after.busy - before.busy - own) / whole))
            load.steal_share = min(1.0, max(0.0, (after.stolen - before.stolen) / whole))


def parse_stat(text: str, ticks_per_second: int) -> Counters:
    """Counters in the text of ``/proc/stat``; a guest's time is part of user time and not counted twice.

    >>> parse_stat("cpu  200 0 100 900 50 10 10 30 0 0\\ncpu0 1 2 3\\ncpu1 1 2 3", 100)
    Counters(cores=2, busy=3.2, stolen=0.3)
    """
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    user, nice, system, _, _, irq, soft_irq, steal = map(int, lines[0][1:9])
    return Counters(
        len(lines) - 1, (user + nice + system + irq + soft_irq) / ticks_per_second, steal / ticks_per_second
    )


def _read() -> Counters | None:
    return parse_stat(STAT.read_text(), os.sysconf("SC_CLK_TCK")) if STAT.exists() else None


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
