"""Put a model into Triton's repository and into service, or leave everything as it was.

A version folder is written once and never changed; ``config.pbtxt``, written last, names the versions to load. Callers
that name no version get the highest one as soon as it is loaded, so a version is proved before: Triton loads a copy of
it under a name of its own, with everything in the request, and must answer the golden inputs as ONNX Runtime does.
"""

import dataclasses
import json
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.inference import check_file, check_signature, infer, open_session
from mlites.models.card import ModelCard, read_card
from mlites.recipe import Serving
from mlites.serving.repository import configuration, configuration_json, model_key, versions_in
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.smoke import Comparison, WrongAnswers, smoke_test
from mlites.storage import MANIFEST, MissingObject, PreconditionFailed, Store

FORMAT = "mlites-deployment/1"
CONFIG = "config.pbtxt"
CLAIM = "claim"


class DeploymentFailed(Exception):
    """The model is not in service; what was served before still is. The message says what failed."""


@dataclasses.dataclass(frozen=True)
class _Pointer:
    """config.pbtxt as found: its text, the etag to replace it with, the versions it names."""

    text: str
    etag: str
    versions: list[int]


def deploy(
    store: Store,
    folder: Path,
    name: str,
    serving: Serving,
    golden: NDArray[np.float32],
    *,
    triton: Triton | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Serve an ONNX model folder as the next version of a model, and prove it.

    The version before stays loaded beside it, for callers that name it and for a quick way back. The model that is
    served already keeps its number; it is verified and tested again.

    Args:
        store: holds Triton's repository, below ``repository/``.
        folder: ``model.onnx`` and ``model.json``.
        name: of the model in Triton.
        serving: batch size, queue delay and instances.
        golden: preprocessed inputs (n, ...) that the served model is asked, at least one.
        triton: the server that reads this repository; by default the environment's.
        threads: of one instance's ONNX Runtime session.

    Returns:
        The deployment document.

    Raises:
        InputError: not an ONNX model folder, no S3 or no Triton at the given addresses.
        DeploymentFailed: Triton does not load it, it answers wrongly, or another deployment was first.
    """
    card, expected = _prove_folder(folder, golden)
    triton = triton or Triton.from_environment()
    triton.check()
    former = _read_pointer(store, name)
    _prove_apart(triton, folder, name, card, serving, threads, golden, expected)
    version = _stored_version(store, name, former, folder) or _store_new_version(store, name, folder)
    if former and version in former.versions:
        versions = former.versions
    else:
        versions = [*(former.versions[-1:] if former else []), version]
    try:
        etag = _point(store, name, configuration(name, card, serving, versions, threads), former)
    except PreconditionFailed:
        raise DeploymentFailed(
            f"another deployment of {name} was first; look at what it serves, then try again"
        ) from None
    try:
        triton.load(name)
        triton.wait_until_ready(name, version)
        comparison = smoke_test(triton, name, version, golden, expected, serving.max_batch_size)
    except (TritonRefused, WrongAnswers) as error:
        restored = _restore(store, triton, name, former, etag)
        raise DeploymentFailed(f"{name} version {version} is not served: {error}; {restored}") from None
    except BaseException:
        _restore(store, triton, name, former, etag)
        raise
    return {
        "format": FORMAT,
        "status": "deployed",
        "model": name,
        "version": version,
        "repository": f"{store.uri}/{model_key(name)}",
        "sha256": card.files["model.onnx"],
        "model_digest": card.digest,
        "triton_url": triton.url,
        "grpc_url": triton.grpc,
        "previous_version": max((number for number in versions if number < version), default=None),
        "golden": dataclasses.asdict(comparison),
        "reasons": [],
    }


def declined(selection: dict[str, Any], name: str) -> dict[str, Any]:
    """The deployment document of a selection that the gate turned down: nothing was touched, and why."""
    reasons = [
        reason
        for candidate in selection["candidates"]
        if candidate["candidate"] == selection["selected"]
        for reason in candidate["reasons"]
    ]
    return {
        "format": FORMAT,
        "status": "rejected",
        "model": name,
        "version": None,
        "repository": None,
        "sha256": None,
        "model_digest": selection["model"],
        "triton_url": None,
        "grpc_url": None,
        "previous_version": None,
        "golden": None,
        "reasons": reasons or [selection["reason"]],
    }


def _prove_folder(folder: Path, golden: NDArray[np.float32]) -> tuple[ModelCard, NDArray[np.float32]]:
    """The card, and the logits that ONNX Runtime gives for the golden inputs."""
    card = read_card(folder)
    if card.form != "onnx":
        raise InputError(f"{folder}: a {card.form} model; Triton serves ONNX: export it first")
    if golden.dtype != np.float32 or len(golden) == 0 or golden.shape[1:] != tuple(card.input_shape):
        raise InputError(
            f"golden inputs must be float32 (n, {', '.join(map(str, card.input_shape))}) with n >= 1, "
            f"got {golden.dtype} {golden.shape}"
        )
    path = folder / "model.onnx"
    check_file(path)
    session = open_session(path, threads=1)
    check_signature(session, path, tuple(card.input_shape), len(card.classes))
    return card, infer(session, path, golden)


def _prove_apart(
    triton: Triton,
    folder: Path,
    name: str,
    card: ModelCard,
    serving: Serving,
    threads: int,
    golden: NDArray[np.float32],
    expected: NDArray[np.float32],
) -> Comparison:
    """Load a copy under a name that no caller knows, ask it, and unload it."""
    copy = f"{name}-check-{uuid.uuid4().hex[:12]}"
    config = configuration_json(configuration(copy, card, serving, [1], threads))
    try:
        triton.load_apart(copy, config, {"1/model.onnx": (folder / "model.onnx").read_bytes()})
        triton.wait_until_ready(copy, 1)
        return smoke_test(triton, copy, 1, golden, expected, serving.max_batch_size)
    except (TritonRefused, WrongAnswers) as error:
        raise DeploymentFailed(f"{name} fails its trial in Triton: {error}; what was served before still is") from None
    finally:
        with suppress(TritonRefused):  # it never loaded, or Triton is gone: the trial's own error says so
            triton.unload(copy)


def _read_pointer(store: Store, name: str) -> _Pointer | None:
    key = model_key(name, CONFIG)
    try:
        etag = store.stat(key).etag
        text = store.get(key).decode()
        return _Pointer(text, etag, versions_in(text))
    except MissingObject:
        return None
    except ValueError as error:
        raise InputError(
            f"{store.uri}/{key} was not written by mlites: {error}; move it away or name another model"
        ) from None


def _stored_version(store: Store, name: str, former: _Pointer | None, folder: Path) -> int | None:
    """The number under which this very model is served now, its objects read back and verified."""
    if former is None:
        return None
    version = former.versions[-1]
    try:
        files = json.loads(store.get(model_key(name, version, MANIFEST)))["files"]
    except MissingObject:
        return None
    if files["model.onnx"]["sha256"] != read_card(folder).files["model.onnx"]:
        return None
    if store.get(model_key(name, version, "model.json")) != (folder / "model.json").read_bytes():
        return None
    for file, entry in files.items():
        store.verify(model_key(name, version, file), entry["sha256"], entry["size"])
    return version


def _store_new_version(store: Store, name: str, folder: Path) -> int:
    """Write the next version folder; the manifest, written last, says that it is whole.

    A number is taken by whoever writes its claim first. One that a crash left half-written is never used again.
    """
    taken = [int(part) for key in store.keys(model_key(name, "")) if (part := key.split("/")[2]).isdecimal()]
    version = max(taken, default=0) + 1
    while True:
        try:
            store.put(model_key(name, version, CLAIM), uuid.uuid4().hex.encode(), if_absent=True)
            break
        except PreconditionFailed:
            version += 1
    store.put_folder(model_key(name, version), folder)
    return version


def _point(store: Store, name: str, text: str, former: _Pointer | None) -> str:
    """Write config.pbtxt if it is still the one that was read, in a later second: Triton tells changes by these.

    Raises:
        PreconditionFailed: another deployment was first.
    """
    key = model_key(name, CONFIG)
    if former is None:
        return store.put(key, text.encode(), if_absent=True)
    etag, before = former.etag, store.stat(key).modified
    while True:
        etag = store.put(key, text.encode(), if_match=etag)
        if store.stat(key).modified > before:
            return etag
        time.sleep(0.1)


def _restore(store: Store, triton: Triton, name: str, former: _Pointer | None, etag: str) -> str:
    """Point back to what was served and make Triton read it; says in words how that went."""
    key = model_key(name, CONFIG)
    try:
        if former is None:
            if store.stat(key).etag == etag:
                store.delete(key)
                triton.unload(name)
            return "it had no version before"
        _point(store, name, former.text, _Pointer("", etag, []))
        triton.load(name)
        triton.wait_until_ready(name, former.versions[-1])
        return f"version {former.versions[-1]} serves as before"
    except (MissingObject, PreconditionFailed):
        return "another deployment has taken over meanwhile"
    except TritonRefused as error:
        return f"the configuration is back as it was, but Triton does not serve it: {error}"
