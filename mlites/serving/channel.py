"""Channels: for each model and channel one small pointer object, swapped by conditional writes.

``channels/<model>/<channel>.json`` names the release that callers get, and the model and version under which Triton
serves it. It is written last, when that version is loaded and has answered rightly, so it always points to a whole and
verified release.
"""

import json
import socket
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlites.errors import InputError, first_fault
from mlites.files import canonical_json
from mlites.serving.release import Sha256
from mlites.storage import MissingObject, PreconditionFailed, Store

Channel = Literal["staging", "canary", "production"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)
LONGEST_TRAIL = 50


class Pointer(BaseModel):
    """What a channel points to.

    ``etag`` is that of the object as read; it is not part of its content.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["mlites-channel/1"] = "mlites-channel/1"
    model: str
    channel: Channel
    digest: Sha256 = Field(description="Of the release.")
    version: int = Field(ge=1, description="Number under which Triton serves it.")
    served_as: str = Field(description="The model's name in Triton: its own for production.")
    share: float = Field(1.0, ge=0, le=1, description="Of production's requests that callers send here; canary alone.")
    sequence: int = Field(ge=1, description="Counts the swaps of this channel.")
    event: Literal["promoted", "rolled back"]
    reason: str = ""
    trail: tuple[Sha256, ...] = Field(description="Releases in the order of their promotion, this one last.")
    previous_version: int | None = Field(None, description="Under which the release before is loaded still.")
    at: datetime
    by: str = Field(description="Host of the promoter.")
    etag: Annotated[str, Field(exclude=True)] = ""

    @property
    def previous(self) -> str | None:
        """The release to go back to."""
        return self.trail[-2] if len(self.trail) > 1 else None


def served_name(model: str, channel: Channel) -> str:
    """A channel's model in Triton; the dot keeps it apart from all names that a recipe may give.

    >>> served_name("digits", "production"), served_name("digits", "staging")
    ('digits', 'digits.staging')
    """
    return model if channel == "production" else f"{model}.{channel}"


def channel_key(model: str, channel: Channel) -> str:
    """Key of the pointer."""
    return f"channels/{model}/{channel}.json"


def lock_key(model: str, channel: Channel) -> str:
    """Key of the lock that whoever changes a channel holds."""
    return f"channels/{model}/{channel}.lock.json"


def read_channel(store: Store, model: str, channel: Channel) -> Pointer | None:
    """The pointer of a channel, None where nothing was ever promoted to it.

    Raises:
        InputError: the object is damaged.
    """
    key = channel_key(model, channel)
    try:
        content, etag = store.get_with_etag(key)
    except MissingObject:
        return None
    return _parse(content, f"{store.uri}/{key}").model_copy(update={"etag": etag})


def swap_channel(store: Store, pointer: Pointer, former: Pointer | None) -> Pointer:
    """Write a pointer if the channel still is what was read before.

    Raises:
        PreconditionFailed: another promoter was first.
    """
    key, content = channel_key(pointer.model, pointer.channel), _encode(pointer)
    etag = store.put(key, content, if_absent=former is None, if_match=former.etag if former else None)
    return pointer.model_copy(update={"etag": etag})


def next_pointer(
    model: str,
    channel: Channel,
    digest: str,
    version: int,
    former: Pointer | None,
    *,
    rolled_back: bool = False,
    reason: str = "",
    share: float = 1.0,
    previous_version: int | None = None,
) -> Pointer:
    """The pointer that follows; a rollback cuts the trail back to the release that it returns to."""
    trail = former.trail if former else ()
    if rolled_back and digest in trail:
        trail = trail[: trail.index(digest)]
    trail = tuple(one for one in trail if one != digest)
    return Pointer(
        model=model,
        channel=channel,
        digest=digest,
        version=version,
        served_as=served_name(model, channel),
        share=share,
        sequence=former.sequence + 1 if former else 1,
        event="rolled back" if rolled_back else "promoted",
        reason=reason,
        trail=(*trail, digest)[-LONGEST_TRAIL:],
        previous_version=previous_version,
        at=datetime.now(UTC),
        by=socket.gethostname(),
    )


def record(store: Store, pointer: Pointer) -> None:
    """Keep a pointer in the channel's history; it may be there already."""
    key = f"channels/{pointer.model}/{pointer.channel}/{pointer.sequence:08}.json"
    with suppress(PreconditionFailed):
        store.put(key, _encode(pointer), if_absent=True)


def history(store: Store, model: str, channel: Channel) -> list[Pointer]:
    """All that a channel pointed to, the oldest first."""
    keys = store.keys(f"channels/{model}/{channel}/")
    return [_parse(store.get(key), f"{store.uri}/{key}") for key in keys]


def record_refusal(store: Store, model: str, channel: Channel, digest: str, reason: str) -> None:
    """Keep why a release was not promoted; the last reason of each counts."""
    content = {"channel": channel, "digest": digest, "reason": reason, "at": datetime.now(UTC).isoformat()}
    store.put(f"channels/{model}/refused/{digest}.json", canonical_json(content))


def refusals(store: Store, model: str) -> dict[str, dict[str, str]]:
    """The last refusal of each release that was refused, by digest: ``channel``, ``reason`` and ``at``."""
    found = [json.loads(store.get(key)) for key in store.keys(f"channels/{model}/refused/")]
    return {one["digest"]: one for one in found}


def read_channels(store: Store, model: str) -> dict[Channel, Pointer]:
    """The channels of a model that point to something."""
    return {channel: found for channel in CHANNELS if (found := read_channel(store, model, channel))}


def _encode(pointer: Pointer) -> bytes:
    return canonical_json(pointer.model_dump(mode="json", exclude_none=True))


def _parse(content: bytes, place: str) -> Pointer:
    try:
        return Pointer.model_validate_json(content)
    except ValidationError as error:
        where, fault = first_fault(error, "pointer")
        raise InputError(f"{place} is damaged: {where}: {fault}; restore it from the history beside it") from None
