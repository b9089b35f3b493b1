"""Cores that a measurement keeps to, so that a small target can be had on a large machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = Path("/proc/thread-self/stat")


@contextmanager
def keep_to_cores(count: int | None) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, to so many of its cores; afterwards it has all of them again.

    The core on which the scheduler has this thread is among them: it is the one that was free.

    Args:
        count: of cores; None, or more than there are, leaves all. Only Linux can do this.
    """
    if sys.platform != "linux":
        yield
        return
    allowed = os.sched_getaffinity(0)
    if count is None or count >= len(allowed):
        yield
        return
    here = int(PLACE.read_text().rpartition(")")[2].split()[36])  # the name before may hold spaces
    nearest = sorted(allowed, key=lambda core: (core != here, core))
    os.sched_setaffinity(0, nearest[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
