"""A process that must not outlive another: neither is there a writer left behind after `kill -9`."""

import os
import select
import signal
import subprocess
import sys
import threading


def die_with(pid: int, *, group: bool = False) -> None:
    """End this process, with SIGKILL, as soon as another one is gone.

    A parent-death signal would not do: between the runner and a step stands a shell.

    Args:
        pid: The process to watch.
        group: End the whole process group instead, of which the caller must be the leader.
    """

    def end() -> None:
        if group:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        end()

    def watch() -> None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
        end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def main() -> None:
    """``python lifeline.py PID COMMAND...``: run a command that ends with the process PID; leads its process group."""
    die_with(int(sys.argv[1]), group=True)
    raise SystemExit(subprocess.call(sys.argv[2:]))


if __name__ == "__main__":
    main()
