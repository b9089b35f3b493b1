"""Promotion: a release proves itself away from the callers, then beside the release in service, then takes its place.

A channel's pointer is swapped last, when the new version is loaded and has answered; whatever fails before leaves the
old version in service, and whatever fails after brings it back. Nothing is in danger from a promoter that is killed:
the next one finds the channel whole and puts in order what was left behind.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mlites.errors import InputError
from mlites.serving.channel import (
    Channel,
    Pointer,
    channel_key,
    history,
    lock_key,
    next_pointer,
    read_channel,
    record,
    record_refusal,
    served_name,
    swap_channel,
)
from mlites.serving.lock import Busy, Lock, hold
from mlites.serving.prove import ask_each, prove
from mlites.serving.raw import check_raw, retire_raw
from mlites.serving.release import Fetched, fetch_release
from mlites.serving.rollout import RolloutPlace, place_of
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.server import Counts, Triton, TritonRefused
from mlites.serving.smoke import Comparison
from mlites.serving.steps import PromotionFailed, Say, Step
from mlites.serving.swap import bring_back, follow, put_into_service
from mlites.serving.trial import Subject, Unfit, judge_speed
from mlites.serving.versions import Configuration, Place
from mlites.storage import Store, StoreFailed

MOST_ERRORS = 0.01  # of the callers' requests to a version that is being watched

Found = TypeVar("Found")


@dataclass(frozen=True)
class Promoted:
    """What is in service now.

    Attributes:
        pointer: of the channel.
        fetched: the release's manifest and card (its folder is gone).
        golden: how near the served answers are.
        previous_version: loaded beside it, None if there is none.
        findings: in words, in the order of the steps.
    """

    pointer: Pointer
    fetched: Fetched
    golden: Comparison
    previous_version: int | None
    findings: tuple[str, ...]


def promote(
    store: Store,
    model: str,
    digest: str,
    channel: Channel = "production",
    *,
    triton: Triton | None = None,
    trial: Callable[[], AbstractContextManager[Sandbox]] = sandbox,
    say: Say = lambda step, words: None,
) -> Promoted:
    """Bring a release into service in a channel, if it proves itself.

    Args:
        store: holds releases, channels and Triton's repository.
        model: its name.
        digest: of the release, whole.
        channel: staging, canary or production.
        triton: the server that reads this repository; by default the environment's.
        trial: opens the sandbox.
        say: told of each step that is done, with what it found.

    Raises:
        InputError: no such release, wrong settings, or a server does not answer.
        Busy: another promoter is at work in this channel, or was faster.
        PromotionFailed: the release does not prove itself; what was served before is.
    """
    place = place_of(store, served_name(model, channel), triton or Triton.from_environment(), os.environ)
    place.check()
    before = read_channel(store, model, channel)
    findings: list[str] = []

    def tell(step: Step, words: str) -> None:
        findings.append(f"{step}: {words}")
        say(step, words)

    what = f"promotion of {model}@{digest[:12]} to {channel}"
    with _promoter(store, model, channel, what) as (lock, scratch), _refusal(store, model, channel, digest):
        tell("locked", f"{channel} of {model}")
        former = read_channel(store, model, channel)
        if former != before:
            raise Busy(f"{channel} of {model} was given to {_named(former)} meanwhile; look at it, then try again")
        if former:
            follow(place, former)
        found = settle(place, former)
        tell("settled", _named(former))
        candidate = _fetch(store, model, digest, scratch / "candidate")
        tell("verified", f"{len(candidate.release.objects)} objects of {digest[:12]}")
        check_raw(candidate.release, rolled_out=isinstance(place, RolloutPlace))
        if former and former.digest == digest:
            subject = Subject(place.name, former.version, candidate)
            golden = _fit(model, digest, lambda: ask_each(place, subject), former)
            return Promoted(former, candidate, golden, _beside(found, former.version), tuple(findings))
        stable = _stable(store, model, former, scratch / "stable")
        _fit(model, digest, lambda: prove(place, trial, candidate, stable, former, tell), former)
        limits = candidate.release.serving.promotion
        if channel == "production" and former and stable and limits.canary_share > 0:
            beside = Subject(place.name, former.version, stable)
            _fit(model, digest, lambda: _share(place, candidate, beside, tell), former)
        pointer, golden = put_into_service(place, lock, candidate, channel, former, found, tell)
        try:
            tell("watched", _watch(place, candidate, pointer))
            lock.check()
        except (Unfit, TritonRefused) as error:
            words = _take_back(place, lock, pointer, former, stable, tell, str(error))
            raise PromotionFailed(f"{model}@{digest[:12]}: {error}; {words}") from None
        return Promoted(pointer, candidate, golden, former.version if former else None, tuple(findings))


def rollback(
    store: Store,
    model: str,
    to: str | None = None,
    channel: Channel = "production",
    *,
    triton: Triton | None = None,
    say: Say = lambda step, words: None,
) -> Promoted:
    """Bring back a release that was in service before; it takes the channel from a promoter that is at work.

    Args:
        store: holds releases, channels and Triton's repository.
        model: its name.
        to: digest of the release; by default the one before the present.
        channel: staging, canary or production.
        triton: the server that reads this repository; by default the environment's.
        say: told of each step that is done.

    Raises:
        InputError: nothing to go back to, or a server does not answer.
        Busy: another rollback was faster.
        PromotionFailed: the release cannot be served; what was served before is.
    """
    place = place_of(store, served_name(model, channel), triton or Triton.from_environment(), os.environ)
    place.check()
    with _promoter(store, model, channel, f"rollback of {model}", preempt=True) as (lock, scratch):
        say("locked", f"{channel} of {model}")
        former = read_channel(store, model, channel)
        if former is None:
            raise InputError(f"{channel} of {model} has no release; see: mlites releases {model}")
        digest = to or former.previous
        if digest is None:
            raise InputError(f"{model}@{former.digest[:12]} is the first release in {channel}; there is none before it")
        if digest == former.digest:
            raise InputError(f"{model}@{digest[:12]} is in {channel} already; see: mlites releases {model}")
        if digest not in former.trail and digest not in {one.digest for one in history(store, model, channel)}:
            raise InputError(f"{model}@{digest[:12]} was never in {channel}; promote it: mlites promote")
        target = _fetch(store, model, digest, scratch / "target")
        say("verified", f"{len(target.release.objects)} objects of {digest[:12]}")
        pointer, golden = bring_back(place, lock, target, former, say, "asked for")
        return Promoted(pointer, target, golden, None, ())


def settle(place: Place, pointer: Pointer | None) -> Configuration | None:
    """Make repository and server agree with the channel, whatever a killed promoter or server has left.

    Returns:
        config.pbtxt as it stands now.
    """
    for replica in place.each():
        for name in replica.ready_versions():
            if re.fullmatch(rf"{re.escape(place.name)}(-raw)?-check-[0-9a-f]{{12}}", name):
                with suppress(TritonRefused):
                    replica.unload(name)
    if pointer is None:
        return place.read()
    found, changed = place.agree(pointer)
    if not changed and place.loaded()[-1:] == [pointer.version]:
        return found
    try:
        place.load(found.text)
    except TritonRefused:  # a version beside it may be gone
        found = place.write(place.alone(pointer.version), found)
        place.load(found.text)
    place.wait_until_ready(pointer.version)
    return found


@contextmanager
def _promoter(
    store: Store, model: str, channel: Channel, what: str, *, preempt: bool = False
) -> Iterator[tuple[Lock, Path]]:
    with (
        hold(store, lock_key(model, channel), what, preempt=preempt) as lock,
        tempfile.TemporaryDirectory(prefix="mlites-") as scratch,
    ):
        yield lock, Path(scratch)


@contextmanager
def _refusal(store: Store, model: str, channel: Channel, digest: str) -> Iterator[None]:
    """Keep for `mlites releases` why a promotion failed."""
    try:
        yield
    except PromotionFailed as error:
        with suppress(InputError, StoreFailed):
            record_refusal(store, model, channel, digest, str(error))
        raise


def _fetch(store: Store, model: str, digest: str, folder: Path) -> Fetched:
    """The release, verified.

    Raises:
        PromotionFailed: it is damaged, incomplete, or not signed as it must be.
    """
    try:
        return fetch_release(store, model, digest, folder)
    except InputError as error:
        raise PromotionFailed(f"{model}@{digest[:12]} is not loaded: {error}") from None


def _stable(store: Store, model: str, former: Pointer | None, folder: Path) -> Fetched | None:
    """The release in service to compare with: the channel's, or else production's."""
    pointer = former or read_channel(store, model, "production")
    return _fetch(store, model, pointer.digest, folder) if pointer else None


def _fit(model: str, digest: str, judge: Callable[[], Found], former: Pointer | None) -> Found:
    try:
        return judge()
    except (Unfit, TritonRefused) as error:
        raise PromotionFailed(f"{model}@{digest[:12]} is not promoted: {error}; {_named(former)} serves on") from None


def _share(production: Place, candidate: Fetched, stable: Subject, tell: Say) -> None:
    """Give the candidate some of the callers' requests by the canary channel, and judge it beside the rest.

    Raises:
        Unfit: it fails more of them, or is slower.
    """
    release, store = candidate.release, production.store
    limits, place = release.serving.promotion, replace(production, name=served_name(release.model, "canary"))
    with _promoter(store, release.model, "canary", f"canary of {release.model}@{release.digest[:12]}") as (lock, _):
        former = read_channel(store, release.model, "canary")
        quiet: Say = lambda step, words: None  # noqa: E731
        pointer, _ = put_into_service(
            place, lock, candidate, "canary", former, settle(place, former), quiet, share=limits.canary_share
        )
        mine = Subject(place.name, pointer.version, candidate)
        try:
            replica = place.each()[0]
            before = replica.counts(mine.name, mine.version)
            words = judge_speed(replica, mine, stable, limits.canary_seconds)
            answered = _check_errors(replica, mine, before)
        finally:
            closed = next_pointer(release.model, "canary", release.digest, pointer.version, pointer, share=0.0)
            record(store, swap_channel(store, closed, pointer))
    tell("canaried", f"{limits.canary_share:.0%} of the requests, {answered} in all; {words}")


def _check_errors(triton: Triton, subject: Subject, before: Counts) -> int:
    """How many requests a version has answered since; callers' own included.

    Raises:
        Unfit: more than `MOST_ERRORS` failed.
    """
    now = triton.counts(subject.name, subject.version)
    failed, answered = now.failed - before.failed, now.answered - before.answered
    if failed > MOST_ERRORS * (failed + answered):
        raise Unfit(f"{failed} of {failed + answered} requests to version {subject.version} failed")
    return answered


def _watch(place: Place, candidate: Fetched, pointer: Pointer) -> str:
    """Look at a version that callers use, in each replica.

    Raises:
        Unfit: requests fail, or take too long.
    """
    seconds = candidate.release.serving.promotion.watch_seconds
    if seconds == 0:
        return "not asked for"
    subject = Subject(pointer.served_as, pointer.version, candidate)
    answered, replicas = 0, place.each()
    for replica in replicas:
        before = replica.counts(subject.name, subject.version)
        words = judge_speed(replica, subject, None, seconds / len(replicas))
        answered += _check_errors(replica, subject, before)
    return f"{answered} requests answered in {seconds:g} s; {words}"


def _take_back(
    place: Place, lock: Lock, pointer: Pointer, former: Pointer | None, stable: Fetched | None, tell: Say, why: str
) -> str:
    """After a failed watch, serve what was served before; says in words how that went."""
    try:
        lock.check()
        if former is None or stable is None:
            place.store.delete(channel_key(pointer.model, pointer.channel))
            retire_raw(place.store, place.triton, place.name)
            place.remove()
            return "it was the first release, and nothing is in service now"
        back, _ = bring_back(place, lock, stable, pointer, tell, why)
        return f"{_named(back)} is back in service"
    except Busy as error:
        return str(error)
    except (PromotionFailed, TritonRefused, InputError, StoreFailed) as error:
        return f"going back failed too: {error}; take the channel back by: mlites rollback {pointer.model}"


def _named(pointer: Pointer | None) -> str:
    return f"{pointer.model}@{pointer.digest[:12]} (version {pointer.version})" if pointer else "nothing"


def _beside(found: Configuration | None, version: int) -> int | None:
    return max((one for one in found.versions if one < version), default=None) if found else None
