"""One promoter at a time in each channel: a lock in the store that is alive as long as it changes.

The holder rewrites its object every half second. Nobody compares clocks: who finds the object held watches it for a
while, and takes it over if it does not change, for then its holder is gone. Every write is conditional, so that of two
who try, one wins; a holder that was overtaken notices at its next write.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mlites.errors import InputError
from mlites.files import canonical_json
from mlites.storage import MissingObject, PreconditionFailed, Store, StoreFailed

FORMAT = "mlites-lock/1"
BEAT_SECONDS = 0.5
QUIET_SECONDS = 3.0  # without a change, after which the holder counts as gone
PREEMPTIONS = 50


class Busy(Exception):
    """Another promoter is at work in this channel, or was faster; the message says which."""


@dataclass
class Lock:
    """Held by this process. Its methods may be called from several threads."""

    store: Store
    key: str
    what: str
    etag: str
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    beats: int = 0
    lost: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Make sure, in the store, that this process still holds the lock.

        Raises:
            Busy: another has taken it over.
        """
        with self.guard:
            self._beat()

    def keep(self, end: threading.Event) -> None:
        """Show until the end that the holder lives; a store that does not answer now may do so in a moment."""
        while not end.wait(BEAT_SECONDS) and not self.lost:
            with suppress(Busy, InputError, StoreFailed), self.guard:
                self._beat()

    def free(self) -> None:
        """Let the next one in; where that fails, it comes in when the lock has been quiet for long enough."""
        with self.guard:
            if not self.lost:
                with suppress(PreconditionFailed, InputError, StoreFailed):
                    self.store.put(self.key, _content(None, "", self.beats), if_match=self.etag)

    def _beat(self) -> None:
        if not self.lost:
            self.beats += 1
            try:
                self.etag = self.store.put(self.key, _content(self.holder, self.what, self.beats), if_match=self.etag)
            except (PreconditionFailed, MissingObject):
                self.lost = True
        if self.lost:
            raise Busy(f"{_holder(self.store, self.key)} has taken over")


@contextmanager
def hold(store: Store, key: str, what: str, *, preempt: bool = False) -> Iterator[Lock]:
    """Hold a lock while the body runs.

    Args:
        store: holds the lock's object.
        key: of it.
        what: this process does, for those who find it held.
        preempt: take it over from whoever has it, for what cannot wait.

    Raises:
        Busy: another holds it, or was faster.
    """
    lock = Lock(store, key, what, "")
    lock.etag = _take(lock, preempt)
    end = threading.Event()
    keeper = threading.Thread(target=lock.keep, args=(end,), name="lock", daemon=True)
    keeper.start()
    try:
        yield lock
    finally:
        end.set()
        keeper.join()
        lock.free()


def _take(lock: Lock, preempt: bool) -> str:
    store, key, content = lock.store, lock.key, _content(lock.holder, lock.what, 0)
    for _ in range(PREEMPTIONS if preempt else 1):
        try:
            found, etag = store.get_with_etag(key)
        except MissingObject:
            try:
                return store.put(key, content, if_absent=True)
            except PreconditionFailed:
                continue
        held = _parse(found).get("holder") is not None
        if held and not preempt and not _is_quiet(store, key, etag):
            break
        with suppress(PreconditionFailed):
            return store.put(key, content, if_match=etag)
    raise Busy(f"{_holder(store, key)} is at work; wait until it is done")


def _is_quiet(store: Store, key: str, etag: str) -> bool:
    """Whether a lock's object does not change while it is watched."""
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 4)
        if store.stat(key).etag != etag:
            return False
    return True


def _content(holder: str | None, what: str, beat: int) -> bytes:
    where = {"host": socket.gethostname(), "pid": os.getpid()} if holder else {}
    mark = uuid.uuid4().hex  # so that no two contents, and no two etags, are alike
    return canonical_json({"format": FORMAT, "holder": holder, "what": what, "beat": beat, "mark": mark, **where})


def _parse(content: bytes) -> dict[str, Any]:
    """The lock's content; one that is damaged belongs to nobody."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _holder(store: Store, key: str) -> str:
    """Who has the lock and for what, in words."""
    found: dict[str, Any] = {}
    with suppress(InputError, StoreFailed):
        found = _parse(store.get(key))
    if not found.get("holder"):
        return "another promoter"
    return f"{found.get('what') or 'another promoter'} (process {found.get('pid')} on {found.get('host')})"
