import os
import subprocess
import sys
import time

import pytest

from mlites.hardware.load import Load, parse_stat, watch

SPIN = "print(1, flush=True)\nwhile True: pass"


def test_the_machines_counters_are_read_as_the_manual_says():
    text = "cpu  100 20 30 4000 50 6 7 80 9 1\ncpu0 1 0 0\ncpu1 1 0 0\ncpu2 0 0 0\nintr 5\n"
    found = parse_stat(text, 100)
    assert (found.cores, found.busy, found.stolen) == (3, pytest.approx(1.63), 0.8)  # idle and waiting are not busy


def test_another_process_is_seen_and_the_own_work_is_not():
    cores = os.cpu_count() or 1
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        before = _seconds(other.pid)
        start = time.monotonic()
        with watch() as load:
            while time.monotonic() < start + 1.0:
                pass
        taken, seconds = _seconds(other.pid) - before, time.monotonic() - start
        other.kill()
    assert load.others_share is not None and load.steal_share is not None
    assert load.others_share >= taken / (seconds * cores) - 0.05
    assert load.others_share <= 1 and 0 <= load.steal_share <= 1


def test_children_that_were_waited_for_are_ones_own():
    spin = "import time; end = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
    before, start = os.times(), time.monotonic()
    with watch() as load:
        subprocess.run([sys.executable, "-S", "-c", spin], check=True)
    after, whole = os.times(), (time.monotonic() - start) * (os.cpu_count() or 1)
    child = after.children_user - before.children_user
    assert child > 0 and load.others_share is not None
    assert load.others_share <= 1 - child / whole + 0.05


def test_a_busy_machine_is_told_in_one_line_and_a_quiet_one_is_not():
    assert Load(0.05, 0.01).warnings() == [] and Load().warnings() == []
    (busy,) = Load(0.47, 0.0).warnings()
    assert busy == "busy machine: other processes took 47% of all cores' time"
    (stolen,) = Load(0.0, 0.2).warnings()
    assert stolen == "busy host: other guests took 20% of all cores' time"
    assert Load(0.1, None).to_json() == {"others_share": 0.1, "steal_share": None}


def _seconds(process: int) -> float:
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
