"""Releases: immutable, content-addressed prefixes in S3, each with a manifest that is written last.

``releases/<model>/<digest>/`` holds ``model.onnx``, ``model.json``, ``golden.npz`` and the manifest, ``release.json``.
The digest is that of the manifest's content, and the manifest holds the digest of every object, so that one name
vouches for all bytes. What never came to its manifest does not exist for readers.
"""

import io
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlites.errors import InputError, first_fault
from mlites.files import canonical_json, digest_file, digest_json
from mlites.inference import check_file, check_signature, infer, open_session
from mlites.models.card import ModelCard, read_card
from mlites.recipe.options import NAME
from mlites.recipe.recipe import Serving
from mlites.serving.signature import check_signed, sign
from mlites.storage import MissingObject, PreconditionFailed, Store

FORMAT = "mlites-release/1"
MANIFEST = "release.json"
FILES = ("model.onnx", "model.json", "golden.npz")
GOLDEN_ROWS = 256  # enough to tell classes apart, few enough to ask at each promotion
OUTSIDE_DIGEST = {"digest", "parent"}  # the same model is the same release, whatever stood in service before it

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Object(BaseModel):
    """One object of a release."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Sha256
    size: int = Field(ge=0, description="Bytes.")


class RecipeName(BaseModel):
    """The recipe that made a release."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    digest: Sha256


class GoldenFacts(BaseModel):
    """What is known of the golden samples: ``x`` and the expected ``logits``, and ``labels`` where they have any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(ge=1)
    accuracy: float | None = Field(None, description="Of the expected logits on the golden labels, in [0, 1].")


class Release(BaseModel):
    """The manifest, ``release.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["mlites-release/1"] = "mlites-release/1"
    model: Annotated[str, Field(pattern=NAME)]
    digest: Sha256 = "0" * 64
    objects: dict[str, Object]
    input_shape: tuple[int, ...] = Field(min_length=1, description="Of one row, without the batch.")
    classes: tuple[str, ...] = Field(min_length=2, description="In the order of the logits.")
    preprocessing: dict[str, Any] = Field(description="(raw * scale - mean) / std, as in model.json.")
    serving: Serving = Serving()
    threads: int = Field(1, ge=1, description="Of one instance's ONNX Runtime session.")
    golden: GoldenFacts
    metrics: dict[str, Any] = Field({}, description="As the verdict measured them.")
    reference: dict[str, int] = Field({}, description="Rows of the test split that the model puts in each class.")
    model_digest: Sha256 = Field(description="Of the model folder.")
    data_digest: Sha256 | None = None
    recipe: RecipeName | None = None
    git_commit: str | None = None
    parent: Sha256 | None = Field(None, description="The release in production when this one was made.")

    @property
    def prefix(self) -> str:
        """Where the release lies in the store."""
        return release_prefix(self.model, self.digest)

    def to_bytes(self) -> bytes:
        """The content of ``release.json``."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True)
class Golden:
    """Samples with known answers.

    Attributes:
        rows: preprocessed inputs (n, ...), float32.
        logits: expected answers (n, classes), float32.
        labels: names of the true classes (n,), None where the samples have none.
    """

    rows: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Fetched:
    """A release whose bytes were verified, in a local folder.

    Attributes:
        release: its manifest.
        folder: holds `FILES`.
        card: of the model.
        golden: its samples.
    """

    release: Release
    folder: Path
    card: ModelCard
    golden: Golden


@dataclass(frozen=True)
class Listed:
    """A release as a list shows it.

    Attributes:
        release: its manifest.
        made: when the manifest was written.
    """

    release: Release
    made: datetime


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's canonical JSON, as it is written, without what depends on when it was made."""
    return digest_json({key: value for key, value in content.items() if key not in OUTSIDE_DIGEST})


def release_prefix(model: str, digest: str) -> str:
    """Key prefix of a release, without a slash at the end."""
    return f"releases/{model}/{digest}"


def make_release(
    store: Store,
    folder: Path,
    model: str,
    *,
    serving: Serving,
    rows: NDArray[np.float32],
    labels: tuple[str, ...] | None = None,
    threads: int = 1,
    **facts: Any,
) -> Release:
    """Write an ONNX model folder as a release; the same content again is the same release.

    It is signed if MLITES_SIGNING_KEY names a key.

    Args:
        store: takes the release.
        folder: ``model.onnx`` and ``model.json``.
        model: the name under which it is served.
        serving: the recipe's serving section.
        rows: preprocessed inputs (n, ...) that become the golden samples, at least one.
        labels: names of their true classes (n,).
        threads: of one instance's ONNX Runtime session.
        facts: ``metrics``, ``reference``, ``data_digest``, ``recipe``, ``git_commit`` and ``parent`` of the manifest.

    Raises:
        InputError: not an ONNX model folder, or inputs that do not fit it.
    """
    if not re.fullmatch(NAME, model):
        raise InputError(f"model name {model[:80]!r}: use lower-case letters, digits and inner hyphens, at most 63")
    card, logits = expected_logits(folder, rows)
    accuracy = None
    if labels is not None:
        if len(labels) != len(rows):
            raise InputError(f"golden labels must be as many as rows, got {len(labels)} for {len(rows)}")
        accuracy = float(
            np.mean([card.classes[one] == label for one, label in zip(logits.argmax(1), labels, strict=True)])
        )
    with tempfile.TemporaryDirectory() as scratch:
        golden = Path(scratch) / "golden.npz"
        golden.write_bytes(_pack(Golden(rows, logits, labels)))
        sources = {"model.onnx": folder / "model.onnx", "model.json": folder / "model.json", "golden.npz": golden}
        objects = {name: Object(sha256=digest_file(path), size=path.stat().st_size) for name, path in sources.items()}
        release = Release(
            model=model,
            objects=objects,
            input_shape=card.input_shape,
            classes=card.classes,
            preprocessing=card.preprocessing,
            serving=serving,
            threads=threads,
            golden=GoldenFacts(samples=len(rows), accuracy=accuracy),
            model_digest=card.digest,
            **facts,
        )
        digest = content_digest(release.model_dump(mode="json", exclude_none=True))
        release = release.model_copy(update={"digest": digest})
        for name, path in sources.items():
            _store_object(store, f"{release.prefix}/{name}", path, objects[name])
    key = f"{release.prefix}/{MANIFEST}"
    try:
        store.put(key, release.to_bytes(), if_absent=True)
    except PreconditionFailed:  # made before: it stays as it is, with its own parent
        release = read_release(store, model, release.digest)
    sign(store, key)
    return release


def expected_logits(folder: Path, rows: NDArray[np.float32]) -> tuple[ModelCard, NDArray[np.float32]]:
    """The card, and the logits (n, classes) that ONNX Runtime gives for rows (n, ...).

    Raises:
        InputError: not an ONNX model folder, or rows that do not fit it.
    """
    card = read_card(folder)
    if card.form != "onnx":
        raise InputError(f"{folder}: a {card.form} model; Triton serves ONNX: export it first")
    if rows.dtype != np.float32 or len(rows) == 0 or rows.shape[1:] != tuple(card.input_shape):
        raise InputError(
            f"rows must be float32 (n, {', '.join(map(str, card.input_shape))}) with n >= 1, "
            f"got {rows.dtype} {rows.shape}"
        )
    path = folder / "model.onnx"
    check_file(path)
    session = open_session(path, threads=1)
    check_signature(session, path, tuple(card.input_shape), len(card.classes))
    return card, infer(session, path, rows)


def read_release(store: Store, model: str, digest: str) -> Release:
    """The manifest of a release; its digest is verified, its objects are not read.

    Raises:
        MissingObject: there is no such release, or it was never written to its end.
        InputError: the manifest is not what the digest names.
    """
    return parse_release(store.get(f"{release_prefix(model, digest)}/{MANIFEST}"), model, digest)


def parse_release(content: bytes, model: str, digest: str) -> Release:
    """A manifest from its bytes.

    Raises:
        InputError: it is not the manifest that the digest names.
    """
    place = f"release {model}@{digest[:12]}"
    try:
        release = Release.model_validate_json(content)
    except ValidationError as error:
        where, fault = first_fault(error, "manifest")
        raise InputError(f"{place}: {MANIFEST} is damaged: {where}: {fault}; release the model again") from None
    if (release.model, release.digest) != (model, digest) or content_digest(json.loads(content)) != digest:
        raise InputError(f"{place}: {MANIFEST} is not what its digest names; it was altered, release the model again")
    if set(release.objects) != set(FILES):
        raise InputError(f"{place}: it must hold {', '.join(FILES)}, got {', '.join(sorted(release.objects))[:200]}")
    return release


def list_releases(store: Store, model: str) -> list[Listed]:
    """All whole releases of a model, the oldest first; a damaged manifest is left out."""
    found = []
    for key in store.keys(f"releases/{model}/"):
        _, _, digest, *rest = key.split("/")
        if rest != [MANIFEST]:
            continue
        try:
            found.append(Listed(read_release(store, model, digest), store.stat(key).modified))
        except InputError:
            continue
    return sorted(found, key=lambda one: (one.made, one.release.digest))


def find_release(store: Store, model: str, digest: str) -> str:
    """The whole digest of a release that is named by its first digits, at least six.

    Raises:
        InputError: none begins like this, or several do.
    """
    if not re.fullmatch(r"[0-9a-f]{6,64}", digest):
        raise InputError(
            f"a release is named by 6 to 64 hexadecimal digits, got {digest[:80]!r}; see: mlites releases {model}"
        )
    names = {key.split("/")[2] for key in store.keys(f"releases/{model}/{digest}") if key.endswith(f"/{MANIFEST}")}
    if len(names) != 1:
        many = f"{len(names)} releases begin" if names else "no release begins"
        raise InputError(f"{model}@{digest}: {many} with these digits; see: mlites releases {model}")
    return names.pop()


def fetch_release(store: Store, model: str, digest: str, folder: Path) -> Fetched:
    """Download a release and verify every byte of it.

    Raises:
        MissingObject: there is no such release, or an object of it is gone.
        InputError: an object is not what the manifest says, or the manifest does not describe the model, or no key
            that MLITES_TRUSTED_KEYS names has signed it.
    """
    key = f"{release_prefix(model, digest)}/{MANIFEST}"
    content = store.get(key)
    release = parse_release(content, model, digest)
    check_signed(store, key, content)
    for name, entry in release.objects.items():
        path = folder / name
        store.get_file(f"{release.prefix}/{name}", path)
        found = digest_file(path)
        if path.stat().st_size != entry.size or found != entry.sha256:
            raise InputError(
                f"release {model}@{digest[:12]}: {name} is damaged: its sha256 is {found[:12]}, the manifest says "
                f"{entry.sha256[:12]}; release the model again"
            )
    card = read_card(folder)
    for name in ("input_shape", "classes", "preprocessing"):
        if getattr(card, name) != getattr(release, name):
            raise InputError(
                f"release {model}@{digest[:12]}: {name} of the manifest is not that of model.json; "
                "release the model again"
            )
    return Fetched(release, folder, card, _unpack(folder / "golden.npz", release))


def differences(old: Release, new: Release) -> dict[str, tuple[Any, Any]]:
    """What two releases differ in, by path: the value of each, None where one lacks it.

    >>> one = Release(model="m", objects={}, input_shape=(2,), classes=("a", "b"), preprocessing={},
    ...               golden=GoldenFacts(samples=1), model_digest="0" * 64, metrics={"accuracy": 0.5})
    >>> differences(one, one.model_copy(update={"metrics": {"accuracy": 0.6}}))
    {'metrics.accuracy': (0.5, 0.6)}
    """
    before, after = (dict(_flatten(one.model_dump(mode="json", exclude_none=True))) for one in (old, new))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _flatten(value: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, inner in value.items():
        place = f"{path}.{key}" if path else key
        pairs += _flatten(inner, place) if isinstance(inner, Mapping) else [(place, inner)]
    return pairs


def _store_object(store: Store, key: str, path: Path, entry: Object) -> None:
    """Write an object unless it is there already, and read it back: its name promises these bytes to everybody."""
    try:
        found = store.stat(key)
        if (found.sha256, found.size) != (entry.sha256, entry.size):
            raise MissingObject(key)
    except MissingObject:
        store.put_file(key, path)
    store.verify(key, entry.sha256, entry.size)


def _pack(golden: Golden) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"x": golden.rows, "logits": golden.logits}
    if golden.labels is not None:
        arrays["labels"] = np.array(golden.labels, np.str_)
    np.savez_compressed(buffer, **arrays)  # without times, so that equal samples are equal bytes
    return buffer.getvalue()


def _unpack(path: Path, release: Release) -> Golden:
    place = f"release {release.model}@{release.digest[:12]}: golden.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            rows, logits = archive["x"], archive["logits"]
            labels = tuple(map(str, archive["labels"])) if "labels" in archive else None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{place} cannot be read: {error}; release the model again") from None
    count = release.golden.samples
    if rows.dtype != np.float32 or rows.shape != (count, *release.input_shape):
        raise InputError(f"{place}: x must be float32 {(count, *release.input_shape)}, got {rows.dtype} {rows.shape}")
    if logits.dtype != np.float32 or logits.shape != (count, len(release.classes)):
        shape = (count, len(release.classes))
        raise InputError(f"{place}: logits must be float32 {shape}, got {logits.dtype} {logits.shape}")
    if not (np.isfinite(rows).all() and np.isfinite(logits).all()):
        raise InputError(f"{place} holds NaN or infinity; a model that answers so is not released")
    if labels is not None and len(labels) != count:
        raise InputError(f"{place}: {len(labels)} labels for {count} rows")
    return Golden(rows, logits, labels)
