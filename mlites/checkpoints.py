"""Checkpoints in the store: what a step has reached outlives its pod.

Each is an object named by the digest of all that decides what is trained: a retried step finds its own and no other's,
and two runs of the same recipe may share one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mlites.storage import MissingObject, Store

_CURRENT: ContextVar["StoredCheckpoints | None"] = ContextVar("stored checkpoints", default=None)


class StoredCheckpoints:
    """The checkpoints of one step. A store that fails costs the checkpoint and a line, never the training."""

    def __init__(self, uri: str, step: str) -> None:
        self._uri, self._step = uri, step
        self._used: set[str] = set()

    def find(self, identity: str) -> bytes | None:
        """The last checkpoint kept under a name, verified, or None."""
        try:
            content = Store(self._uri).get(self._key(identity))
        except MissingObject:
            return None
        except Exception as error:  # whatever a server may answer: training anew is always right
            print(f"checkpoint not read: {_line(error)}", flush=True)
            return None
        self._used.add(identity)
        return content

    def keep(self, identity: str, content: bytes) -> None:
        """Replace the checkpoint of a name; a reader sees the old one or the new one, whole."""
        try:
            Store(self._uri).put(self._key(identity), content)
        except Exception as error:
            print(f"checkpoint not kept: {_line(error)}", flush=True)
            return
        self._used.add(identity)

    def forget(self) -> None:
        """Remove what this process kept or went on from."""
        for identity in sorted(self._used):
            try:
                Store(self._uri).delete(self._key(identity))
            except Exception as error:
                print(f"checkpoint not removed: {_line(error)}", flush=True)
        self._used.clear()

    def _key(self, identity: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", identity):
            raise ValueError(f"a checkpoint is named by 64 hexadecimal digits, got {identity[:80]!r}")
        return f"{self._step}/{identity}.safetensors"


@contextmanager
def checkpoints_in(uri: str, step: str) -> Iterator[None]:
    """While this lasts, trainings keep their checkpoints in the store, too; on success these are removed.

    Args:
        uri: ``s3://bucket/prefix``.
        step: name of the step, a folder there.
    """
    stored = StoredCheckpoints(uri, step)
    token = _CURRENT.set(stored)
    try:
        yield
    finally:
        _CURRENT.reset(token)
    stored.forget()


def stored_checkpoints() -> StoredCheckpoints | None:
    """The checkpoints in the store of the step under way, where it has some."""
    return _CURRENT.get()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
