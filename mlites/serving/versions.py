"""A model in Triton's repository: numbered folders that are written once, and config.pbtxt that names those to load.

Callers that name no version get the highest one loaded, so numbers only ever rise and what stands in config.pbtxt has
been verified before. Loading goes by the configuration in the request: Triton tells changes of the file by whole
seconds, and the file is for its next start.
"""

import json
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlites.errors import InputError
from mlites.serving.release import Fetched
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
class Place:
    """A model's place in the repository of a server.

    Attributes:
        store: holds the repository, below ``repository/``.
        triton: reads it.
        name: of the model there.
    """

    store: Store
    triton: Triton
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

    def remove(self) -> None:
        """Take the model out of service and out of Triton's next start; its versions stay."""
        self.store.delete(model_key(self.name, CONFIG))
        if self.name in self.triton.ready_versions():
            self.triton.unload(self.name)

    def load(self, text: str) -> None:
        """Have the server load what a configuration names, and nothing else of this model."""
        self.triton.load_with(self.name, configuration_json(text))

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
        files = json.loads(self.store.get(model_key(self.name, version, MANIFEST)))["files"]
        return str(files["model.onnx"]["sha256"])

    def check_version(self, version: int) -> dict[str, str]:
        """Read a version folder's objects back; the sha256 of each.

        Raises:
            MissingObject: it was never written to its end, or something is gone.
            InputError: an object is damaged.
        """
        return self.store.verify_folder(model_key(self.name, version))

    def delete_version(self, version: int) -> None:
        """Remove a version folder, its manifest first; the claim stays, so that the number is not used again."""
        prefix = model_key(self.name, version, "")
        self.store.delete(f"{prefix}{MANIFEST}")
        for key in self.store.keys(prefix):
            if key != f"{prefix}{CLAIM}":
                self.store.delete(key)
