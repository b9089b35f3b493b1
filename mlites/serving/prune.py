"""Remove what nothing needs any more: old releases, and version folders that Triton does not load."""

import os
from contextlib import ExitStack
from dataclasses import dataclass

from mlites.errors import InputError
from mlites.serving.channel import CHANNELS, lock_key, read_channels, served_name
from mlites.serving.lock import hold
from mlites.serving.promote import settle
from mlites.serving.raw import forget_raw
from mlites.serving.release import MANIFEST, list_releases, release_prefix
from mlites.serving.rollout import RolloutPlace, place_of
from mlites.serving.server import Triton
from mlites.storage import Store


@dataclass(frozen=True)
class Pruned:
    """What is gone.

    Attributes:
        releases: digests, the oldest first.
        versions: of each model in Triton's repository.
    """

    releases: tuple[str, ...]
    versions: dict[str, tuple[int, ...]]


def prune(store: Store, model: str, keep: int, *, triton: Triton | None = None) -> Pruned:
    """Keep the last releases, what the channels point to and what each would go back to; remove the others.

    Of the repository stay the versions that ``config.pbtxt`` names. Copies that a killed trial left in Triton are
    unloaded.

    Args:
        store: holds releases, channels and Triton's repository.
        model: its name.
        keep: how many of the last releases, at least one.
        triton: the server that reads this repository; by default the environment's.

    Raises:
        InputError: fewer than one to keep, no such model, or a server does not answer.
        Busy: a promoter is at work.
    """
    if keep < 1:
        raise InputError(f"--keep must be at least 1, got {keep}")
    triton = triton or Triton.from_environment()
    place_of(store, model, triton, os.environ).check()
    listed = list_releases(store, model)
    if not listed:
        raise InputError(f"{model} has no releases in {store.uri}; check the name")
    with ExitStack() as locks:
        for channel in CHANNELS:
            locks.enter_context(hold(store, lock_key(model, channel), f"pruning of {model}"))
        pointers = read_channels(store, model)
        needed = {one.release.digest for one in listed[-keep:]}
        for pointer in pointers.values():
            needed |= {pointer.digest, *([pointer.previous] if pointer.previous else [])}
        releases = tuple(one.release.digest for one in listed if one.release.digest not in needed)
        for digest in releases:
            prefix = release_prefix(model, digest)
            store.delete(f"{prefix}/{MANIFEST}")  # first: what has none does not exist
            store.delete_all(f"{prefix}/")
        versions = {}
        for channel in CHANNELS:
            place = place_of(store, served_name(model, channel), triton, os.environ)
            settled = settle(place, pointers.get(channel))
            named = settled.versions if settled else []
            gone = tuple(one for one in place.taken() if one not in named and place.delete_version(one))
            if gone:
                forget_raw(store, place.name, gone)
                versions[place.name] = gone
            if isinstance(place, RolloutPlace):
                place.prune_revisions()
    return Pruned(releases, versions)
