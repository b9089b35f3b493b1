"""A program that only loads a model and infers: started afresh by `memory` and, several at a time, by `throughput`.

It imports ONNX Runtime and NumPy alone, so that what it needs is what a server needs. Its one argument is JSON; the
inputs come as float32 on standard input, from the second line on where the first line is waited for.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort

INFERENCES = 10  # before the peak is read, and before requests are answered


def main(job: dict[str, Any]) -> None:
    """Print what was found as JSON.

    Args:
        job: model, threads, provider, options, shape of the inputs; and, to answer requests, closed (a number of
            seconds) or arrivals (seconds after the start, at which requests come), whose start is read from standard
            input, as a time of the monotonic clock, after the inputs, once a line on standard output has said that all
            is ready.
    """
    shape = tuple(job["shape"])
    count = int(np.prod(shape)) * 4
    rows = np.frombuffer(sys.stdin.buffer.read(count), np.float32).reshape(shape)
    start = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(job["model"], options, providers=[(job["provider"], job["options"])])
    feed, names = {session.get_inputs()[0].name: rows}, [session.get_outputs()[0].name]
    loaded = time.perf_counter()
    session.run(names, feed)
    first = time.perf_counter()
    for _ in range(INFERENCES - 1):
        session.run(names, feed)
    found: dict[str, Any] = {"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (first - loaded), **_peaks()}
    if "closed" in job or "arrivals" in job:
        print("ready", flush=True)
        begin = float(sys.stdin.buffer.readline())
        found["response_ms"] = _answer(session, names, feed, begin, job)
    print(json.dumps(found))


def _answer(session: ort.InferenceSession, names: list[str], feed: dict[str, Any], begin: float, job: dict[str, Any]) -> list[float]:
    """Milliseconds from each request's arrival to its answer."""
    clock, run = time.monotonic, session.run
    took = []
    if "arrivals" in job:
        for arrival in job["arrivals"]:
            at = begin + arrival
            if (wait := at - clock()) > 0:
                time.sleep(wait)
            run(names, feed)
            took.append(clock() - at)
    else:
        time.sleep(max(0.0, begin - clock()))
        now, end = clock(), begin + job["closed"]
        while now < end:
            run(names, feed)
            before, now = now, clock()
            took.append(now - before)
    return [1e3 * seconds for seconds in took]


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
