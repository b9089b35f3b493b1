"""A promoter that is killed, or whose Triton is killed, after a chosen one of the things that it does.

python -m tests.serving.killed promote|rollback MODEL DIGEST self|triton:MARK POINT: every write to the store, every
load and unload, and every step counts as a point. POINT is its number or the name of a step; 0 kills nothing and prints
what the points are.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from mlites.serving import promote as promotion
from mlites.serving.server import Triton
from mlites.stack import process
from mlites.storage import Store


class Points:
    """Counts what is done, and kills at the chosen one."""

    def __init__(self, victim: str, point: int | str) -> None:
        self.victim, self.point, self.names = victim, point, list[str]()
        self.guard = threading.RLock()

    def reached(self, name: str) -> None:
        with self.guard:
            self.names.append(name)
            if self.point not in (len(self.names), name):
                return
            print(json.dumps([name]), flush=True)
            if self.victim == "self":
                os.kill(os.getpid(), signal.SIGKILL)
            for pid in process.find(self.victim):
                os.kill(pid, signal.SIGKILL)

    def after(self, owner: Any, method: str, name: Any) -> None:
        original = getattr(owner, method)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            words = name(arguments, options)
            if words:
                self.reached(words)
            return result

        setattr(owner, method, wrapped)


def run(action: str, model: str, digest: str, victim: str, point: int | str) -> "subprocess.CompletedProcess[str]":
    """Run this file as a process."""
    command = [sys.executable, "-m", "tests.serving.killed", action, model, digest, victim, str(point)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def main() -> None:
    """Promote or roll back, and be killed."""
    action, model, digest, victim, point = sys.argv[1:6]
    points = Points(victim, int(point) if point.isdecimal() else f"step {point}")
    store = Store.open(os.environ["MLITES_STORE"])

    def key(arguments: Any, options: Any) -> str | None:
        name = options["Key"]
        return None if name.endswith(".lock.json") else f"write {name}"

    client = store._client
    points.after(client, "put_object", key)
    points.after(client, "delete_object", key)
    for method in ("load_with", "load_apart", "unload"):
        points.after(Triton, method, lambda arguments, options, method=method: f"{method} {arguments[1]}")

    def say(step: str, words: str) -> None:
        points.reached(f"step {step}")

    try:
        if action == "promote":
            promotion.promote(store, model, digest, say=say)
        else:
            promotion.rollback(store, model, digest, say=say)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(points.names), flush=True)


if __name__ == "__main__":
    main()
