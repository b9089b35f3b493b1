"""A model in Triton's repository: numbered folders that are written once, and config.pbtxt that names those to load.

Callers that name no version get the highest one loaded, so numbers only ever rise and what stands in config.pbtxt has
been verified before. Loading goes by the configuration in the request: Triton tells changes of the file by whole
seconds, and the file is for its next start.
"""

import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mlites.errors import InputError
from mlites.serving.channel import CHANNELS, Channel, Pointer, read_channel
from mlites.serving.release import Fetched, fetch_release
from mlites.serving.repository import configuration, configuration_json, model_key, versions_in
from mlites.serving.server import Triton
from mlites.storage import MANIFEST, MissingObject, PreconditionFailed, Store

CONFIG = "config.pbtxt"
CLAIM = "claim"


@dataclass(frozen=True)
class Configuration:
    """config.pbtxt as found.

    Attributes:
        text: its content.
        etag: to replace it with.
        versions: that it names, ascending.
    """

    text: str
    etag: str
    versions: list[int]


@dataclass(frozen=True)
class Shelf:
    """A model in the repository.

    Attributes:
        store: holds the repository, below ``repository/``.
        name: of the model in Triton.
    """

    store: Store
    name: str

    def read(self) -> Configuration | None:
        """config.pbtxt, None if there is none.

        Raises:
            InputError: it is not one of ours.
        """
        key = model_key(self.name, CONFIG)
        try:
            content, etag = self.store.get_with_etag(key)
            return Configuration(content.decode(), etag, versions_in(content.decode()))
        except MissingObject:
            return None
        except ValueError as error:
            raise InputError(
                f"{self.store.uri}/{key} was not written by mlites: {error}; move it away or name another model"
            ) from None

    def write(self, text: str, former: Configuration | None) -> Configuration:
        """Replace config.pbtxt if it still is the one that was read.

        Raises:
            PreconditionFailed: another was first.
        """
        etag = self.store.put(
            model_key(self.name, CONFIG),
            text.encode(),
            if_absent=former is None,
            if_match=former.etag if former else None,
        )
        return Configuration(text, etag, versions_in(text))

    def text(self, fetched: Fetched, versions: Sequence[int], sha256: dict[int, str]) -> str:
        """A configuration for these versions with the settings of a release."""
        release = fetched.release
        return configuration(self.name, fetched.card, release.serving, list(versions), release.threads, sha256)

    def taken(self) -> list[int]:
        """Numbers of all version folders, whole or not, ascending."""
        keys = self.store.keys(model_key(self.name, ""))
        return sorted({int(part) for key in keys if (part := key.split("/")[2]).isdecimal()})

    def store_version(self, fetched: Fetched, above: int) -> int:
        """Write a release as the next version folder; the manifest, written last, says that it is whole.

        A number is taken by whoever writes its claim first. One that a crash left half-written is never used again.

        Args:
            fetched: the release.
            above: the number must be higher than this.
        """
        version = max([above, *self.taken()]) + 1
        while True:
            try:
                self.store.put(model_key(self.name, version, CLAIM), uuid.uuid4().hex.encode(), if_absent=True)
                break
            except PreconditionFailed:
                version += 1
        self.fill_version(fetched, version)
        return version

    def fill_version(self, fetched: Fetched, version: int) -> None:
        """Write, or mend, a version folder; each object is read back and compared."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name in ("model.onnx", "model.json"):
                (folder / name).symlink_to(fetched.folder.resolve() / name)
            alone = self.text(fetched, [version], {version: fetched.release.objects["model.onnx"].sha256})
            (folder / CONFIG).write_text(alone)
            self.store.put_folder(model_key(self.name, version), folder)

    def alone(self, version: int) -> str:
        """The configuration that loads this version and no other, as it was written with it."""
        return self.store.get(model_key(self.name, version, CONFIG)).decode()

    def sha256(self, version: int) -> str:
        """Of a version's model.onnx, as its manifest says."""
        files = self.store.get_json(model_key(self.name, version, MANIFEST))["files"]
        return str(files["model.onnx"]["sha256"])

    def check_version(self, version: int) -> dict[str, str]:
        """Read a version folder's objects back; the sha256 of each.

        Raises:
            MissingObject: it was never written to its end, or something is gone.
            InputError: an object is damaged.
        """
        return self.store.verify_folder(model_key(self.name, version))

    def delete_version(self, version: int) -> bool:
        """Remove a version folder, its manifest first; whether there was anything to remove.

        The claim stays, so that the number is not used again.
        """
        prefix = model_key(self.name, version, "")
        self.store.delete(f"{prefix}{MANIFEST}")
        rest = [key for key in self.store.keys(prefix) if key != f"{prefix}{CLAIM}"]
        for key in rest:
            self.store.delete(key)
        return bool(rest)

    def agree(self, pointer: Pointer) -> tuple[Configuration, bool]:
        """Make what Triton loads at its next start agree with the channel, whatever a killed promoter has left.

        A version folder that is damaged is made anew from the release.

        Returns:
            config.pbtxt as it stands now, and whether it was changed.
        """
        try:
            self.check_version(pointer.version)
        except InputError:
            with tempfile.TemporaryDirectory() as scratch:
                release = fetch_release(self.store, pointer.model, pointer.digest, Path(scratch))
                self.delete_version(pointer.version)
                self.fill_version(release, pointer.version)
        found = self.read()
        if found and found.versions[-1] == pointer.version:
            return found, False
        return self.write(self.alone(pointer.version), found), True


@dataclass(frozen=True)
class Place(Shelf):
    """A model in the repository, and the server that reads it."""

    triton: Triton

    def check(self) -> None:
        """Make sure that the server answers.

        Raises:
            InputError: it does not.
        """
        self.triton.check()

    def each(self) -> list[Triton]:
        """Every replica of the server."""
        return self.triton.each()

    def load(self, text: str) -> None:
        """Have every replica load what a configuration names, and nothing else of this model."""
        for replica in self.each():
            replica.load_with(self.name, configuration_json(text))

    def wait_until_ready(self, version: int) -> None:
        """Wait until every replica takes requests for a version."""
        for replica in self.each():
            replica.wait_until_ready(self.name, version)

    def loaded(self) -> list[int]:
        """Versions that every replica takes requests for, ascending."""
        ready = [set(replica.ready_versions().get(self.name, [])) for replica in self.each()]
        return sorted(set.intersection(*ready)) if ready else []

    def complete(self, text: str) -> None:
        """Load a configuration where it is not: in a replica that has started since, by an older config.pbtxt."""
        version = versions_in(text)[-1]
        for replica in self.each():
            if version not in replica.ready_versions().get(self.name, []):
                replica.load_with(self.name, configuration_json(text))
                replica.wait_until_ready(self.name, version)

    def remove(self) -> None:
        """Take the model out of service and out of Triton's next start; its versions stay."""
        self.store.delete(model_key(self.name, CONFIG))
        for replica in self.each():
            if self.name in replica.ready_versions():
                replica.unload(self.name)


def agree_all(store: Store) -> list[str]:
    """Make the whole repository agree with the channels, before Triton starts; what was put right, in words."""
    said = []
    for key in store.keys("channels/"):
        _, model, *rest = key.split("/")
        if len(rest) != 1 or rest[0].removesuffix(".json") not in CHANNELS:
            continue
        try:
            pointer = read_channel(store, model, cast(Channel, rest[0].removesuffix(".json")))
            if pointer and Shelf(store, pointer.served_as).agree(pointer)[1]:
                said.append(f"{pointer.served_as} starts with version {pointer.version}")
        except InputError as error:  # one damaged model must not keep the others out
            said.append(f"{key}: {error}")
    return said
