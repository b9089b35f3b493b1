"""What the workers of one training are told, as a JSON document: on this machine a file, for pods an object in S3."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlites.errors import InputError
from mlites.files import canonical_json, write_atomically
from mlites.storage import MissingObject, Store

FORMAT = "mlites-training/1"
FAILURE_FORMAT = "mlites-training-failure/1"
LOST = 75  # exit code of a worker that lost another: it is not the one that failed
LOST_WORDS = "lost another worker"


@dataclass(frozen=True)
class Job:
    """One training of a teacher by several workers.

    All places are local paths, or ``s3://`` addresses that `put_folder` wrote.

    Attributes:
        teacher: the recipe's section.
        seed: of initial weights and all draws.
        data: folder of the prepared dataset.
        given: the user's model folder or weights, where there are some.
        model: where the model folder goes.
        failure: where the first worker that is given wrong input says so.
        checkpoint: what outlives a killed run on this machine.
    """

    teacher: dict[str, Any]
    seed: int
    data: str
    given: str | None
    model: str
    failure: str
    checkpoint: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def read(cls, place: str) -> "Job":
        """The job that a worker was given.

        Raises:
            InputError: missing, or no such document.
        """
        try:
            document = json.loads(read_bytes(place))
            if document.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{place}: no training job ({FORMAT}): {error}") from None


def write_failure(place: str, error: str) -> None:
    """Say what is wrong with the input, unless another worker has said it."""
    content = canonical_json({"format": FAILURE_FORMAT, "error": error})
    if place.startswith("s3://"):
        store, key = split(place)
        store.put(key, content)
    else:
        write_atomically(Path(place), content)


def read_failure(place: str) -> str | None:
    """What the workers found wrong with their input, if they did."""
    try:
        document = json.loads(read_bytes(place))
    except (OSError, MissingObject):
        return None
    return str(document["error"])


def fetch_folder(place: str, target: Path) -> Path:
    """A local copy of a folder that lies at a place; one that is local stays there."""
    if not place.startswith("s3://"):
        return Path(place)
    store, key = split(place)
    store.get_folder(key, target)
    return target


def read_bytes(place: str) -> bytes:
    """The bytes of a file or an object."""
    if not place.startswith("s3://"):
        return Path(place).read_bytes()
    store, key = split(place)
    return store.get(key)


def split(place: str) -> tuple[Store, str]:
    """The store around an ``s3://bucket/prefix/name``, and the name."""
    parent, _, name = place.rpartition("/")
    return Store(parent), name
