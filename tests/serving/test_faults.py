"""S3 that fails, through a proxy of our own before the real server."""

import re
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlites.errors import InputError
from mlites.serving.channel import read_channel
from mlites.serving.lock import Busy, hold
from mlites.serving.promote import promote
from mlites.serving.release import fetch_release, list_releases
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.server import Triton
from mlites.serving.steps import PromotionFailed
from mlites.storage import PreconditionFailed, Store, StoreFailed
from tests.serving import planted
from tests.serving.faulty_s3 import FaultyS3, faulty_s3
from tests.serving.test_killed import SERVING


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """One sandbox for all tests here."""
    with sandbox({}) as one:
        yield one


@pytest.fixture
def proxy(seaweedfs: dict[str, str]) -> Iterator[FaultyS3]:
    with faulty_s3(seaweedfs["MLITES_S3_ENDPOINT"], slow_seconds=0.2) as one:
        yield one


@pytest.fixture
def outside(proxy: FaultyS3, store: Store, seaweedfs: dict[str, str]) -> Store:
    """The test's store, seen through the proxy."""
    return Store(store.uri, {**seaweedfs, "MLITES_S3_ENDPOINT": proxy.url})


@pytest.mark.parametrize("fault", ["503", "slow", "truncated", "lost", "reset", "skewed"])
def test_what_fails_now_and_then_is_asked_again(outside: Store, proxy: FaultyS3, store: Store, fault: Any) -> None:
    proxy.choose = lambda method, path, number: fault if number % 3 == 0 else None
    etag = outside.put("one", b"first" * 1000, if_absent=True)
    assert outside.get_with_etag("one") == (b"first" * 1000, etag)
    etag = outside.put("one", b"second" * 1000, if_match=etag)  # a lost answer is not taken for another's write
    with pytest.raises(PreconditionFailed):
        outside.put("one", b"third", if_absent=True)
    assert store.get("one") == b"second" * 1000
    assert outside.keys("") == ["one"]
    assert sum(1 for one in proxy.seen if one[2]) >= 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"answers (503|SlowDown) for s3://.*/one, asked 4 times; look at its log and try again"),
        ("reset", r"breaks off on s3://.*/one \(\w+\), asked 4 times"),
        ("truncated", r"breaks off on s3://.*/one \(\w+\), asked 4 times"),
        ("lost", r"breaks off on s3://.*/one \(\w+\), asked 4 times"),
    ],
)
def test_what_fails_for_good_ends_after_four_tries_in_one_line(
    outside: Store, proxy: FaultyS3, store: Store, fault: Any, message: str
) -> None:
    store.put("one", b"content")
    proxy.choose = lambda method, path, number: fault
    with pytest.raises(StoreFailed, match=message) as caught:
        outside.get("one")
    assert len(str(caught.value).splitlines()) == 1 and len(proxy.seen) <= 4


def test_a_clock_that_is_far_off_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "botocore.auth.get_current_datetime",
        lambda *_, **__: datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1),
    )
    with pytest.raises(InputError, match=r"its clock and this machine's are too far apart \(\w+\); set them"):
        store.put("one", b"content")


@pytest.mark.parametrize(("fault", "at"), [("503", r"/release\.json"), ("lost", r"/golden\.npz"), ("reset", "PUT")])
def test_a_release_that_cannot_be_written_does_not_exist(
    outside: Store, proxy: FaultyS3, store: Store, tmp_path: Path, fault: Any, at: str
) -> None:
    proxy.choose = lambda method, path, number: fault if re.search(at, f"{method} {path}") else None
    with pytest.raises(StoreFailed):
        planted.good(outside, "m", tmp_path, 1, SERVING)
    assert list_releases(store, "m") == []
    proxy.choose = lambda method, path, number: None
    release = planted.good(outside, "m", tmp_path, 1, SERVING)
    fetch_release(store, "m", release.digest, tmp_path / "fetched")


def test_a_swap_whose_answer_is_lost_counts_and_one_that_never_came_does_not(
    served: Store, triton: Triton, name: str, seaweedfs: dict[str, str], tmp_path: Path, box: Sandbox
) -> None:
    digests = [planted.good(served, name, tmp_path, seed, SERVING).digest for seed in (1, 2, 3)]
    with faulty_s3(seaweedfs["MLITES_S3_ENDPOINT"]) as proxy:
        outside = Store(served.uri, {**seaweedfs, "MLITES_S3_ENDPOINT": proxy.url})

        def go(digest: str, fault: Any) -> None:
            proxy.choose = lambda method, path, number: (
                fault if method == "PUT" and path.endswith(f"{name}/production.json") else None
            )
            promote(outside, name, digest, trial=lambda: nullcontext(box))

        go(digests[0], None)
        go(digests[1], "lost")  # each try is answered into the void; what is written tells
        assert _served(served, name) == (digests[1], 2)
        with pytest.raises(PromotionFailed, match=r"is not in service: .* answers .*; version 2 serves as before"):
            go(digests[2], "503")
        assert _served(served, name) == (digests[1], 2)
        assert triton.ready_versions()[name] == [1, 2]


def _served(store: Store, name: str) -> Any:
    pointer = read_channel(store, name, "production")
    return pointer and (pointer.digest, pointer.version)


def test_a_lock_is_alive_as_long_as_it_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlites.serving.lock.QUIET_SECONDS", 1.0)
    with hold(store, "lock", "the first") as first:
        with pytest.raises(Busy, match=r"the first \(process \d+ on .*\) is at work; wait until it is done"):
            hold(store, "lock", "the second").__enter__()
        first.check()
        words = r"the third \(process \d+ on .*\) has taken over"
        with hold(store, "lock", "the third", preempt=True), pytest.raises(Busy, match=words):
            first.check()
        assert first.lost
    with hold(store, "lock", "the fourth") as fourth:
        fourth.check()
    # a holder that was killed does not change it any more
    store.put("lock", b'{"holder": "gone", "what": "the dead", "pid": 1, "host": "h"}')
    with hold(store, "lock", "the fifth") as fifth:
        fifth.check()
    store.put("lock", b"no JSON")
    with hold(store, "lock", "the sixth") as sixth:
        sixth.check()


def test_of_many_who_want_a_lock_one_gets_it(store: Store) -> None:
    meeting, end, got = threading.Barrier(4), threading.Event(), []

    def want(number: int) -> None:
        meeting.wait()
        try:
            with hold(store, "lock", str(number)):
                got.append(number)
                end.wait(20)
        except Busy:
            if len(refused) == 2:
                end.set()
            refused.append(number)

    refused: list[int] = []
    threads = [threading.Thread(target=want, args=(one,)) for one in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 3
