"""A program that only loads a model and infers: started afresh by `memory` and, several at a time, by `throughput`.

It imports ONNX Runtime and NumPy alone, so that it needs what a server needs. Its one argument is JSON; the inputs come
as float32 on standard input.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort

INFERENCES = 10  # before the peak is read, and before requests are answered
SLEEP_ERROR_SECONDS = 2e-4


def main(job: dict[str, Any]) -> None:
    """Print what was found as JSON.

    Args:
        job: model, threads, providers, shape of the inputs, and, to answer requests, seconds. They begin at a time of
            the monotonic clock that is read after the inputs, once the line "ready" has been written, and come without
            a pause, or, where there is a rate_per_second, at random times drawn from seed.
    """
    shape = tuple(job["shape"])
    rows = np.frombuffer(sys.stdin.buffer.read(4 * math.prod(shape)), np.float32).reshape(shape)
    start = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(job["model"], options, providers=[tuple(one) for one in job["providers"]])
    feed, names = {session.get_inputs()[0].name: rows}, [session.get_outputs()[0].name]
    loaded = time.perf_counter()
    session.run(names, feed)
    first = time.perf_counter()
    for _ in range(INFERENCES - 1):
        session.run(names, feed)
    found: dict[str, Any] = {"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (first - loaded), **_peaks()}
    if "seconds" in job:
        print("ready", flush=True)
        begin = float(sys.stdin.buffer.readline())
        done, response = _answer(lambda: session.run(names, feed), begin, job)
        found |= {"done": done, "response_ms": response}
    print(json.dumps(found))


def _answer(run: Callable[[], object], begin: float, job: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds from the beginning to each answer, and milliseconds from each request to its answer."""
    clock, rate = time.monotonic, job.get("rate_per_second")
    if rate:
        gaps = np.random.default_rng(job["seed"]).exponential(1 / rate, size=10 + int(2 * rate * job["seconds"]))
        arrivals = np.cumsum(gaps)
        asked = begin + arrivals[: max(1, int((arrivals < job["seconds"]).sum()))]
    done: list[float] = []
    response: list[float] = []
    now, count = _wait_until(begin), 0
    end = begin + job["seconds"] * (2 if rate else 1)  # who cannot keep up is given up
    while not done or (now < end and (not rate or count < len(asked))):
        at = float(asked[count]) if rate else now
        _wait_until(at)
        run()
        now, count = clock(), count + 1
        done.append(now - begin)
        response.append(1e3 * (now - at))
    return done, response


def _wait_until(at: float) -> float:
    """The time then; it spins in the end, as sleep is not exact."""
    clock = time.monotonic
    if at - clock() > 2 * SLEEP_ERROR_SECONDS:
        time.sleep(at - clock() - SLEEP_ERROR_SECONDS)
    while (now := clock()) < at:
        pass
    return now


def _peaks() -> dict[str, int]:
    """Peak resident bytes: ``now`` of this program, ``usage`` as getrusage has it."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    now = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), usage)
    return {"now": now, "usage": usage}


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Exception as error:
        sys.exit(str(error))
