"""torchrun for one machine: ``python -m mlites.training.launch COUNT JOB FAILED`` runs the workers of a job.

It is a process of its own, as PyTorch's launcher takes over the signals of its process. When one worker fails, or it is
told to end, it ends them all; when it is killed, they end themselves.
"""

import json
import logging
import os
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mlites.files import write_atomically
from mlites.lifeline import die_with

SHUTDOWN_SECONDS = 5  # that workers have to end on SIGTERM


def main(count: int, job: str, failed: Path) -> None:
    """Run the workers to their end.

    Args:
        count: of workers.
        job: file that tells them what to do.
        failed: file that gets, where workers failed, ``[{"rank": ..., "exit_code": ...}]``; a negative code is the
            signal that ended the worker.

    Raises:
        SystemExit: code 1 where workers failed, 128 and the signal's number where this process was told to end.
    """
    die_with(int(os.environ["MLITES_RUNNER_PID"]))
    os.environ["MLITES_RUNNER_PID"] = str(os.getpid())  # whom the workers do not outlive
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # who started us says it, in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "mlites.training.worker", job)
    except ChildFailedError as error:
        found = [{"rank": rank, "exit_code": failure.exitcode} for rank, failure in error.failures.items()]
        write_atomically(failed, json.dumps(found))
        raise SystemExit(1) from None
    except SignalException as signal:
        raise SystemExit(128 + signal.sigval) from None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
