"""Put the ensemble beside a served model, or take it away: proved under another name first, then switched at once."""

import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.dataset import Preprocessing
from mlites.inference import infer, open_session
from mlites.models.card import ModelCard, read_card
from mlites.recipe import Serving
from mlites.serving.ensemble import (
    ENSEMBLE,
    LABELS,
    POSTPROCESS,
    PREPROCESS,
    ensemble_configuration,
    part_configuration,
    part_name,
    postprocessing_model,
    preprocessing_model,
    raw_type,
)
from mlites.serving.postprocessing import softmax
from mlites.serving.repository import configuration_json, model_key, versions_in
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.smoke import WrongAnswers
from mlites.storage import MissingObject, Store

CONFIG = "config.pbtxt"
TOLERANCE = 0.005  # of a probability: half of what the smoke test allows two logits, of which it is a smooth function


def prove_ensemble(
    store: Store,
    triton: Triton,
    model: str,
    folder: Path,
    serving: Serving,
    version: int,
    golden: NDArray[np.float32],
) -> None:
    """Load what the ensemble needs beside the model, and ask the whole under a name that no caller knows.

    Callers notice nothing. Triton assembles an ensemble only from models in its repository; so the parts are written
    there, each once, and shared by all versions that normalise alike.

    Args:
        store: holds Triton's repository.
        triton: the server that reads it.
        model: its name there.
        folder: ``model.onnx`` and ``model.json`` of the version.
        serving: as of the model.
        version: loaded there.
        golden: inputs (n, ...) as the model takes them.

    Raises:
        WrongAnswers: the ensemble answers otherwise than the client's preprocessing and ONNX Runtime.
        TritonRefused: Triton does not load it.
    """
    card = read_card(folder)
    parts = _provide_parts(store, triton, model, card, serving)
    raw = recover_raw(golden, card)
    session = open_session(folder / "model.onnx", threads=1)
    inputs = Preprocessing.from_json(card.preprocessing).apply(raw)
    expected = softmax(infer(session, folder / "model.onnx", inputs))
    name = f"{part_name(model, ENSEMBLE)}-check-{uuid.uuid4().hex[:12]}"
    text = ensemble_configuration(model, card, serving, version, parts, name)
    try:
        triton.load_apart(name, configuration_json(text), {f"{version}/.keep": b"", LABELS: _labels(card)})
        triton.wait_until_ready(name, version)
        compare(triton, name, version, raw, expected, serving.max_batch_size)
    finally:
        with suppress(TritonRefused):
            triton.unload(name)


def switch_ensemble(store: Store, triton: Triton, model: str, card: ModelCard, serving: Serving, version: int) -> None:
    """Let ``<model>-raw`` ask this version, which was proved and is loaded; the one before answers until then.

    Nothing happens where it does so already.

    Raises:
        TritonRefused: Triton does not load it; callers keep the version before.
    """
    name = part_name(model, ENSEMBLE)
    parts = _provide_parts(store, triton, model, card, serving)
    store.put(model_key(name, version, ".keep"), b"")  # S3 has no empty folders, and Triton wants one for the version
    store.put(model_key(name, LABELS), _labels(card))
    changed = write_config(store, name, ensemble_configuration(model, card, serving, version, parts))
    if changed or not triton.is_ready(name, version):
        triton.load(name)
        triton.wait_until_ready(name, version)


def retire_ensemble(store: Store, triton: Triton, model: str) -> None:
    """Stop serving the ensemble of a model, if there is one."""
    for part in (ENSEMBLE, PREPROCESS, POSTPROCESS):
        name = part_name(model, part)
        if not store.keys(model_key(name, CONFIG)):
            continue
        store.delete(model_key(name, CONFIG))
        with suppress(TritonRefused):  # it was never loaded
            triton.unload(name)


def recover_raw(inputs: NDArray[np.float32], card: ModelCard) -> NDArray[Any]:
    """Raw rows (n, ...) that are normalised to these inputs: exactly so for 8-bit pixels."""
    numbers = Preprocessing.from_json(card.preprocessing)
    across = (1, -1) + (1,) * (inputs.ndim - 2)
    mean, std = (np.asarray(one, np.float64).reshape(across) for one in (numbers.mean, numbers.std))
    raw = (inputs * std + mean) / numbers.scale
    if raw_type(card) is np.uint8:
        return np.clip(np.rint(raw), 0, 255).astype(np.uint8)
    return raw.astype(np.float32)


def compare(
    triton: Triton,
    name: str,
    version: int,
    raw: NDArray[Any],
    expected: NDArray[np.float32],
    max_batch_size: int,
) -> None:
    """Ask an ensemble by number for rows alone and together.

    Args:
        triton: the server.
        name: of the ensemble.
        version: its number.
        raw: rows (n, ...).
        expected: probabilities (n, classes).
        max_batch_size: largest request that it takes.

    Raises:
        WrongAnswers: another shape, another probability by more than `TOLERANCE`, or another class.
    """
    for start, end in [(0, 1), *((at, at + max_batch_size) for at in range(0, len(raw), max_batch_size))]:
        probabilities, classes = triton.infer_raw(name, version, np.ascontiguousarray(raw[start:end]))
        wanted = expected[start:end]
        if probabilities.shape != wanted.shape or classes.shape != (len(wanted), 1):
            raise WrongAnswers(f"{name} version {version} answers with shape {probabilities.shape}, not {wanted.shape}")
        difference = float(np.abs(probabilities - wanted).max())
        if not difference <= TOLERANCE:  # so that NaN fails
            raise WrongAnswers(
                f"{name} version {version} differs from the client's preprocessing by a probability of {difference:.3g}"
            )
        named = np.take_along_axis(wanted, classes, axis=1)[:, 0]
        if (named < wanted.max(1) - 2 * TOLERANCE).any():
            raise WrongAnswers(f"{name} version {version} names another class than the largest probability")


def write_config(store: Store, name: str, text: str) -> bool:
    """Write a model's config.pbtxt, in a later second than the one before: by these Triton tells changes.

    Returns:
        Whether it was another before.
    """
    key = model_key(name, CONFIG)
    if _read(store, key) == text:
        return False
    before = store.stat(key).modified if store.keys(key) else None
    while True:
        store.put(key, text.encode())
        if before is None or store.stat(key).modified > before:
            return True
        time.sleep(0.1)


def _provide_parts(store: Store, triton: Triton, model: str, card: ModelCard, serving: Serving) -> dict[str, int]:
    """Versions of the parts that do what this model needs, loaded; those in use before stay so."""
    contents = {PREPROCESS: preprocessing_model(card), POSTPROCESS: postprocessing_model(card)}
    return {part: _provide_part(store, triton, model, part, contents[part], card, serving) for part in contents}


def _provide_part(
    store: Store, triton: Triton, model: str, part: str, content: bytes, card: ModelCard, serving: Serving
) -> int:
    name = part_name(model, part)
    text = _read(store, model_key(name, CONFIG))
    versions = versions_in(text) if text else []
    version = next((one for one in versions if _holds(store, model_key(name, one, "model.onnx"), content)), None)
    if version is None:
        taken = [int(one) for key in store.keys(model_key(name, "")) if (one := key.split("/")[2]).isdecimal()]
        version = max(taken, default=0) + 1
        store.put(model_key(name, version, "model.onnx"), content)
        versions = [*versions[-1:], version]
    changed = write_config(store, name, part_configuration(model, part, card, serving, versions))
    if changed or not triton.is_ready(name, version):
        triton.load(name)
        triton.wait_until_ready(name, version)
    return version


def _holds(store: Store, key: str, content: bytes) -> bool:
    try:
        return store.get(key) == content
    except MissingObject:
        return False


def _labels(card: ModelCard) -> bytes:
    return "".join(f"{' '.join(one.split())}\n" for one in card.classes).encode()


def _read(store: Store, key: str) -> str | None:
    try:
        return store.get(key).decode()
    except MissingObject:
        return None
