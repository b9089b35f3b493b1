"""A process that must not outlive another: neither is there a writer left behind after `kill -9`."""

import os
import select
import signal
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
