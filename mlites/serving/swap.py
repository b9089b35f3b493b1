"""A release takes its place: loaded beside the one in service, asked, the pointer swapped last; and the way back."""

import time
from contextlib import suppress

from mlites.errors import InputError
from mlites.serving.channel import Channel, Pointer, next_pointer, read_channel, record, swap_channel
from mlites.serving.lock import Lock
from mlites.serving.prove import ask_each
from mlites.serving.raw import follow_channel, load_raw, prove_raw
from mlites.serving.release import Fetched
from mlites.serving.rollout import RolloutPlace
from mlites.serving.server import TritonRefused
from mlites.serving.smoke import Comparison
from mlites.serving.steps import FAULTS, PromotionFailed, Say
from mlites.serving.trial import Subject, Unfit
from mlites.serving.versions import Configuration, Place
from mlites.storage import PreconditionFailed, Store, StoreFailed

DRAIN_SECONDS = 1.0  # in which callers read the channel again before a version that was taken back is gone


def put_into_service(
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
        golden = ask_each(place, subject)
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
                follow(place, former)
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
    follow(place, pointer, beside)
    tell("switched", f"{channel} is {label}, version {version}")
    _keep_history(store, former, pointer, tell)
    if taken_back and beside:
        _drain(place, pointer, alone, beside, tell)
    return pointer, golden


def bring_back(
    place: Place, lock: Lock, fetched: Fetched, former: Pointer, tell: Say, why: str
) -> tuple[Pointer, Comparison]:
    """Serve a former release in place of the present one: at once if it still is loaded, else as a new version."""
    version = former.previous_version
    if former.previous != fetched.release.digest or version not in place.loaded():
        return put_into_service(place, lock, fetched, former.channel, former, place.read(), tell, why)
    assert version is not None
    try:
        golden = ask_each(place, Subject(place.name, version, fetched))
    except (Unfit, TritonRefused):  # loaded, but not what it was
        return put_into_service(place, lock, fetched, former.channel, former, place.read(), tell, why)
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
    follow(place, pointer)
    with suppress(TritonRefused):  # it is in nobody's way, and not loaded at the next start
        place.load(alone)
    tell("drained", f"version {version} is gone")


def follow(place: Place, pointer: Pointer, beside: int | None = None) -> None:
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
