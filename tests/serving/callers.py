"""Callers of a served model in a process of their own: half name the channel's version, half name none.

python -m tests.serving.callers JOB.json: asks until standard input closes, then writes every answer as a line of JSON.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http
from numpy.typing import NDArray

from mlites.serving.channel import read_channel
from mlites.serving.server import Triton
from mlites.storage import Store

WORKERS = 8
REFRESH_SECONDS = 0.1


@dataclass(frozen=True)
class Answer:
    """One request and what came back.

    Attributes:
        asked: when, seconds.
        answered: when.
        channel: whether the caller named the version that the channel points to.
        version: that answered, None where the request failed.
        row: of the golden inputs.
        logits: the answer.
        error: what failed.
    """

    asked: float
    answered: float
    channel: bool
    version: int | None
    row: int
    logits: list[float]
    error: str | None


@contextmanager
def calling(
    store: Store, triton: Triton, model: str, rows: NDArray[np.float32], rate: float, folder: Path
) -> Iterator[Any]:
    """Keep callers busy during the body; afterwards the yielded function gives their answers."""
    job, out = folder / "callers.json", folder / "answers.jsonl"
    job.write_text(
        json.dumps(
            {
                "store": store.uri,
                "triton": [triton.url, triton.grpc],
                "model": model,
                "rows": rows.tolist(),
                "rate": rate,
                "out": str(out),
            }
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.callers", str(job)], stdin=-1, stdout=-1, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    ended = False

    def end() -> list[Answer]:
        nonlocal ended
        if not ended:
            ended = True
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(60)
            process.stdout.close()  # type: ignore[union-attr]
        return [Answer(**json.loads(line)) for line in out.read_text().splitlines()]

    try:
        yield end
    finally:
        if not ended:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def main() -> None:
    """Ask at the rate until standard input closes."""
    job = json.loads(Path(sys.argv[1]).read_text())
    store, triton = Store(job["store"]), Triton(*job["triton"])
    rows = np.array(job["rows"], np.float32)
    pointer = read_channel(store, job["model"], "production")
    assert pointer is not None
    end, current = threading.Event(), [pointer.version]
    answers: list[dict[str, Any]] = []

    def follow() -> None:
        while not end.wait(REFRESH_SECONDS):
            found = read_channel(store, job["model"], "production")
            if found:
                current[0] = found.version

    start = time.time() + 0.2

    def ask(worker: int) -> None:
        with tritonclient.http.InferenceServerClient(triton.url.removeprefix("http://")) as client:
            number = worker
            while not end.is_set():
                wait = start + number / job["rate"] - time.time()
                if wait > 0:
                    time.sleep(wait)
                by_channel, row = number % 2 == 0, number % len(rows)
                value = tritonclient.http.InferInput("input", [1, *rows.shape[1:]], "FP32")
                value.set_data_from_numpy(rows[row : row + 1])
                asked, version, logits, error = time.time(), None, [], None
                try:
                    answer = client.infer(job["model"], [value], model_version=str(current[0]) if by_channel else "")
                    version = int(answer.get_response()["model_version"])
                    logits = answer.as_numpy("logits")[0].tolist()
                except Exception as fault:
                    error = f"{type(fault).__name__}: {fault}"
                answers.append(vars(Answer(asked, time.time(), by_channel, version, row, logits, error)))
                number += WORKERS

    threads = [threading.Thread(target=follow), *(threading.Thread(target=ask, args=(one,)) for one in range(WORKERS))]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    end.set()
    for thread in threads:
        thread.join()
    Path(job["out"]).write_text("".join(json.dumps(one) + "\n" for one in answers))


if __name__ == "__main__":
    main()
