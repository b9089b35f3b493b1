import os
import subprocess
import sys

import pytest

from mlites.hardware.profile import keep_to_cores


def test_the_thread_and_what_it_starts_keep_to_the_cores_and_have_all_again_afterwards():
    allowed = os.sched_getaffinity(0)
    with keep_to_cores(1):
        (core,) = os.sched_getaffinity(0)
        assert core in allowed
        tell = "import os; print(*os.sched_getaffinity(0))"
        assert int(subprocess.check_output([sys.executable, "-S", "-c", tell])) == core
        with keep_to_cores(5):
            assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == allowed
    with pytest.raises(ZeroDivisionError), keep_to_cores(1):
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("count", [None, 1024])
def test_more_cores_than_there_are_limit_nothing(count: int | None):
    allowed = os.sched_getaffinity(0)
    with keep_to_cores(count):
        assert os.sched_getaffinity(0) == allowed
