"""Promotion: a release proves itself away from the callers, then beside the release in service, then takes its place.

A channel's pointer is swapped last, when the new version is loaded and has answered; whatever fails before leaves the
old version in service, and whatever fails after brings it back. Nothing is in danger from a promoter that is killed:
the next one finds the channel whole and puts in order what was left behind.
"""

import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from mlites.errors import InputError
from mlites.recipe import Hardware
from mlites.serving.channel import (
    Channel,
    Pointer,
    channel_key,
    history,
    next_pointer,
    read_channel,
    record,
    record_refusal,
    served_name,
    swap_channel,
)
from mlites.serving.lock import Busy, Lock, hold
from mlites.serving.raw import check_raw, follow_channel, load_raw, prove_raw, retire_raw
from mlites.serving.release import Fetched, fetch_release
from mlites.serving.repository import configuration, configuration_json
from mlites.serving.rollout import RolloutPlace, place_of
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.server import Counts, Triton, TritonRefused
from mlites.serving.smoke import Comparison, WrongAnswers
from mlites.serving.trial import Subject, Unfit, judge_answers, judge_memory, judge_speed, parity
from mlites.serving.versions import Configuration, Place
from mlites.storage import PreconditionFailed, Store, StoreFailed

# What a promoter has done; after each of these it may be killed.
Step = Literal[
    "locked",
    "settled",
    "verified",
    "tried",
    "shadowed",
    "canaried",
    "stored",
    "loaded",
    "answered",
    "configured",
    "switched",
    "recorded",
    "watched",
    "drained",
]
STEPS: tuple[Step, ...] = get_args(Step)
Say = Callable[[Step, str], None]
DRAIN_SECONDS = 1.0  # in which callers read the channel again before a version that was taken back is gone
MOST_ERRORS = 0.01  # of the callers' requests to a version that is being watched

Found = TypeVar("Found")
FAULTS = (Unfit, WrongAnswers, TritonRefused, InputError, StoreFailed, PreconditionFailed, Busy)


class PromotionFailed(Exception):
    """The channel has what it had before, or has it again; the message says why."""


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
            _follow(place, former)
        found = settle(place, former)
        tell("settled", _named(former))
        candidate = _fetch(store, model, digest, scratch / "candidate")
        tell("verified", f"{len(candidate.release.objects)} objects of {digest[:12]}")
        check_raw(candidate.release, rolled_out=isinstance(place, RolloutPlace))
        if former and former.digest == digest:
            subject = Subject(place.name, former.version, candidate)
            golden = _fit(model, digest, lambda: _ask_each(place, subject), former)
            return Promoted(former, candidate, golden, _beside(found, former.version), tuple(findings))
        stable = _stable(store, model, former, scratch / "stable")
        _fit(model, digest, lambda: _prove(place, trial, candidate, stable, former, tell), former)
        limits = candidate.release.serving.promotion
        if channel == "production" and former and stable and limits.canary_share > 0:
            beside = Subject(place.name, former.version, stable)
            _fit(model, digest, lambda: _share(place, candidate, beside, tell), former)
        pointer, golden = _put_into_service(place, lock, candidate, channel, former, found, tell)
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
        pointer, golden = _bring_back(place, lock, target, former, say, "asked for")
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
    key = f"channels/{model}/{channel}.lock.json"
    with hold(store, key, what, preempt=preempt) as lock, tempfile.TemporaryDirectory(prefix="mlites-") as scratch:
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


def _prove(
    place: Place,
    trial: Callable[[], AbstractContextManager[Sandbox]],
    candidate: Fetched,
    stable: Fetched | None,
    former: Pointer | None,
    tell: Say,
) -> None:
    """In the sandbox, then in the server itself under a name that no caller knows."""
    if stable:
        _check_interface(candidate, stable)
    limits = candidate.release.serving.promotion
    with trial() as box, ExitStack() as loaded:
        mine, mine_bytes = _load_measured(box, candidate, "candidate", loaded)
        theirs, their_bytes = _load_measured(box, stable, "stable", loaded) if stable else (None, None)
        words = [
            judge_answers(box.triton, mine, theirs),
            judge_memory(mine_bytes, their_bytes and their_bytes * _instances(candidate, stable), limits),
            judge_speed(box.triton, mine, theirs, limits.trial_seconds),
        ]
    tell("tried", "; ".join(words))
    replica = next(iter(place.each()), None)  # before the first rollout there is none
    if limits.shadow_seconds > 0 and replica:
        name = f"{place.name}-check-{uuid.uuid4().hex[:12]}"
        try:
            shadow = _load(replica, candidate, name)
            parity(replica, shadow)
            beside = Subject(former.served_as, former.version, stable) if former and stable else None
            words = [judge_speed(replica, shadow, beside, limits.shadow_seconds)]
        finally:
            _unload(replica, name)
        tell("shadowed", words[0])


def _instances(candidate: Fetched, stable: Fetched | None) -> float:
    """Times as many instances as in service, which take as many times the memory and are asked for."""
    return candidate.release.serving.instances / stable.release.serving.instances if stable else 1.0


def _ask_each(place: Place, subject: Subject) -> Comparison:
    """Golden parity in every replica; the largest difference counts.

    Raises:
        Unfit: one answers otherwise, or there is none.
    """
    found = [parity(replica, subject) for replica in place.each()]
    if not found:
        raise Unfit("no replica is ready")
    return max(found, key=lambda one: one.max_abs_difference)


def _check_interface(candidate: Fetched, stable: Fetched) -> None:
    """Versions of a model share their configuration, and callers their requests."""
    mine, theirs = candidate.release, stable.release
    if (mine.input_shape, len(mine.classes)) != (theirs.input_shape, len(theirs.classes)):
        raise Unfit(
            f"it takes rows of {list(mine.input_shape)} and knows {len(mine.classes)} classes, the release in service "
            f"{list(theirs.input_shape)} and {len(theirs.classes)}; give it another model name"
        )


def _load(triton: Triton, fetched: Fetched, name: str) -> Subject:
    """Load a release that is not in the repository: what was verified goes with the request."""
    release = fetched.release
    sha256 = {1: release.objects["model.onnx"].sha256}
    text = configuration(name, fetched.card, release.serving, [1], release.threads, sha256)
    triton.load_apart(name, configuration_json(text), {"1/model.onnx": (fetched.folder / "model.onnx").read_bytes()})
    triton.wait_until_ready(name, 1)
    return Subject(name, 1, fetched)


def _unload(triton: Triton, name: str) -> None:
    with suppress(TritonRefused):  # it never loaded, or Triton is gone: what failed says so
        triton.unload(name)
        triton.wait_until_gone(name)


def _load_measured(box: Sandbox, fetched: Fetched, role: str, loaded: ExitStack) -> tuple[Subject, int]:
    """Load a release in the sandbox and ask it; the bytes that this took."""
    before = box.memory()
    name = f"{fetched.release.model}-{role}-{uuid.uuid4().hex[:12]}"
    loaded.callback(_unload, box.triton, name)
    subject = _load(box.triton, fetched, name)
    parity(box.triton, subject)
    after = box.memory()
    if before is not None and after is not None:  # processes of an earlier trial may be ending meanwhile
        return subject, sum(held - before.get(pid, 0) for pid, held in after.items())
    from mlites.hardware.memory import measure_process  # a rollback, which is in a hurry, never needs it

    hardware = Hardware(threads=fetched.release.threads, batch=fetched.release.serving.max_batch_size)
    process = measure_process(fetched.folder / "model.onnx", fetched.golden.rows, hardware)
    return subject, process.peak_memory_bytes * fetched.release.serving.instances


def _put_into_service(
    place: Place,
    lock: Lock,
    fetched: Fetched,
    channel: Channel,
    former: Pointer | None,
    found: Configuration | None,
    tell: Say,
    taken_back: str = "",
    share: float = 1.0,
) -> tuple[Pointer, Comparison]:
    """Load a release as the next version beside the one in service, ask it, and swap the pointer.

    Args:
        place: where it will be served.
        lock: of the channel.
        fetched: the release.
        channel: to be swapped.
        former: its pointer.
        found: config.pbtxt as it stands.
        tell: told of each step.
        taken_back: why, where a former release comes back: then the one in service is dropped.
        share: of the pointer.

    Raises:
        PromotionFailed: it is not in service, and what was is.
    """
    release, store = fetched.release, place.store
    written: Configuration | None = None
    pointer: Pointer | None = None
    label = f"{release.model}@{release.digest[:12]}"
    loading = False
    try:
        version = place.store_version(fetched, former.version if former else 0)
        tell("stored", f"version {version}")
        lock.check()
        loading = True
        beside = _load_beside(place, fetched, version, former, found, alone_will_do=bool(taken_back))
        tell("loaded", f"version {version}{f' beside {beside}' if beside else ''}")
        subject = Subject(place.name, version, fetched)
        golden = _ask_each(place, subject)
        if release.serving.preprocessing == "server":
            prove_raw(place.triton, place.name, release, fetched.folder, version, fetched.golden.rows)
            load_raw(store, place.triton, place.name, release, [beside, version] if beside else [version])
        tell("answered", f"{golden.samples} golden rows, largest difference {golden.max_abs_difference:.1e}")
        lock.check()
        alone = place.alone(version)
        written = place.write(alone if taken_back or not beside else _text(place, fetched, [beside, version]), found)
        tell("configured", f"config.pbtxt names {written.versions}")
        place.complete(written.text)
        pointer = next_pointer(
            release.model,
            channel,
            release.digest,
            version,
            former,
            rolled_back=bool(taken_back),
            reason=taken_back,
            share=share,
            previous_version=None if taken_back else beside,
        )
        pointer = swap_channel(store, pointer, former)
    except BaseException as error:
        swapped = _has_swapped(store, pointer) if pointer else False
        if swapped is False:
            if former:
                _follow(place, former)
            words = _restore(place, found, written, loading)
            if isinstance(error, FAULTS):
                raise PromotionFailed(f"{label} is not in service: {error}; {words}") from None
        if not isinstance(error, FAULTS):
            raise
        if swapped is None:
            raise PromotionFailed(
                f"whether {label} is in service is not known: {error}; both versions are verified and loaded, and the "
                "next promotion or rollback finds out"
            ) from None
    assert pointer is not None
    _follow(place, pointer, beside)
    tell("switched", f"{channel} is {label}, version {version}")
    _keep_history(store, former, pointer, tell)
    if taken_back and beside:
        _drain(place, pointer, alone, beside, tell)
    return pointer, golden


def _bring_back(
    place: Place, lock: Lock, fetched: Fetched, former: Pointer, tell: Say, why: str
) -> tuple[Pointer, Comparison]:
    """Serve a former release in place of the present one: at once if it still is loaded, else as a new version."""
    version = former.previous_version
    if former.previous != fetched.release.digest or version not in place.loaded():
        return _put_into_service(place, lock, fetched, former.channel, former, place.read(), tell, why)
    assert version is not None
    try:
        golden = _ask_each(place, Subject(place.name, version, fetched))
    except (Unfit, TritonRefused):  # loaded, but not what it was
        return _put_into_service(place, lock, fetched, former.channel, former, place.read(), tell, why)
    tell("answered", f"version {version}, largest difference {golden.max_abs_difference:.1e}")
    lock.check()
    digest = fetched.release.digest
    pointer = next_pointer(former.model, former.channel, digest, version, former, rolled_back=True, reason=why)
    try:
        pointer = swap_channel(place.store, pointer, former)
    except FAULTS as error:
        if not _has_swapped(place.store, pointer):
            raise PromotionFailed(f"{former.model} is not taken back to {digest[:12]}: {error}; try again") from None
    tell("switched", f"{former.channel} is {former.model}@{digest[:12]}, version {version}")
    _keep_history(place.store, former, pointer, tell)
    with suppress(InputError, StoreFailed, PreconditionFailed):  # the callers are served; `settle` does the rest
        alone = place.alone(version)
        place.write(alone, place.read())
        tell("configured", f"config.pbtxt names [{version}]")
        _drain(place, pointer, alone, former.version, tell)
    return pointer, golden


def _keep_history(store: Store, former: Pointer | None, pointer: Pointer, tell: Say) -> None:
    with suppress(InputError, StoreFailed):  # the pointer says the same, and the next promoter records it
        for one in (former, pointer):
            if one:
                record(store, one)
    tell("recorded", f"swap {pointer.sequence}")


def _drain(place: Place, pointer: Pointer, alone: str, version: int, tell: Say) -> None:
    """Unload a version that was taken back, when callers have had time to read the channel again."""
    time.sleep(DRAIN_SECONDS)
    _follow(place, pointer)
    with suppress(TritonRefused):  # it is in nobody's way, and not loaded at the next start
        place.load(alone)
    tell("drained", f"version {version} is gone")


def _follow(place: Place, pointer: Pointer, beside: int | None = None) -> None:
    """Take raw rows for the version of a channel, and the one beside it, as its release asks."""
    if isinstance(place, RolloutPlace):  # see `check_raw`
        return
    with suppress(TritonRefused, InputError, StoreFailed, PreconditionFailed):  # the next promoter tries again
        versions = [beside, pointer.version] if beside else [pointer.version]
        follow_channel(place.store, place.triton, pointer, versions)


def _load_beside(
    place: Place,
    fetched: Fetched,
    version: int,
    former: Pointer | None,
    found: Configuration | None,
    alone_will_do: bool,
) -> int | None:
    """Load a version beside the one in service; the number of that, None where there is none, or none that loads."""
    beside = former.version if former else found.versions[-1] if found else None
    try:
        place.load(place.alone(version) if beside is None else _text(place, fetched, [beside, version]))
    except (TritonRefused, InputError):
        if beside is None or (former and not alone_will_do):
            raise
        place.load(place.alone(version))
        beside = None
    place.wait_until_ready(version)
    return beside


def _text(place: Place, fetched: Fetched, versions: list[int]) -> str:
    return place.text(fetched, versions, {version: place.sha256(version) for version in versions})


def _has_swapped(store: Store, pointer: Pointer) -> bool | None:
    """Whether a swap whose answer was lost has happened; None if the store does not say."""
    try:
        found = read_channel(store, pointer.model, pointer.channel)
    except (InputError, StoreFailed):
        return None
    return found is not None and found.model_copy(update={"etag": ""}) == pointer.model_copy(update={"etag": ""})


def _restore(place: Place, found: Configuration | None, written: Configuration | None, loading: bool) -> str:
    """Serve again what config.pbtxt named before this promoter came; says in words how that went."""
    try:
        current = place.read()
        if written and current and current.etag == written.etag:
            current = place.write(found.text, written) if found else None
        if current is None:
            place.remove()
            return "nothing was in service before"
        if loading:
            place.load(current.text)
            place.wait_until_ready(current.versions[-1])
        return f"version {current.versions[-1]} serves as before"
    except TritonRefused as error:
        return f"config.pbtxt is as before, but Triton does not load it ({error}); start it again, then promote again"
    except PreconditionFailed:
        return "another promoter has taken over"
    except (InputError, StoreFailed) as error:
        return f"going back is left to the next promotion or rollback ({error})"


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
        pointer, _ = _put_into_service(
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
        back, _ = _bring_back(place, lock, stable, pointer, tell, why)
        return f"{_named(back)} is back in service"
    except Busy as error:
        return str(error)
    except (PromotionFailed, TritonRefused, InputError, StoreFailed) as error:
        return f"going back failed too: {error}; take the channel back by: mlites rollback {pointer.model}"


def _named(pointer: Pointer | None) -> str:
    return f"{pointer.model}@{pointer.digest[:12]} (version {pointer.version})" if pointer else "nothing"


def _beside(found: Configuration | None, version: int) -> int | None:
    return max((one for one in found.versions if one < version), default=None) if found else None
