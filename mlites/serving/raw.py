"""Preprocessing on the server: ``<model>-raw`` in Triton takes raw rows and answers with probabilities and labels.

It is a Python model that asks the model itself by business logic scripting (BLS), version N the version N. An ensemble
would not do: it asks one version alone, and whenever it is loaded Triton loads its parts anew as the repository says,
while versions here serve side by side and the repository is written last.
"""

import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from mlites.data.dataset import Preprocessing
from mlites.errors import InputError
from mlites.files import canonical_json
from mlites.inference import infer, open_session
from mlites.serving.channel import Pointer
from mlites.serving.postprocessing import softmax
from mlites.serving.release import Release, read_release
from mlites.serving.repository import configuration_json, model_key
from mlites.serving.server import Triton, TritonRefused
from mlites.serving.smoke import TOLERANCE, WrongAnswers
from mlites.storage import MissingObject, Store

RAW, PROBABILITIES, CLASS = "raw", "probabilities", "class"
CONFIG, CODE, FACTS, LABELS = "config.pbtxt", "model.py", "raw.json", "labels.txt"
SOURCE = Path(__file__).with_name("raw_model.py")


def raw_name(model: str) -> str:
    """Name in Triton of the model that takes raw rows.

    >>> raw_name("digits")
    'digits-raw'
    """
    return f"{model}-raw"


def raw_type(release: Release) -> type[np.uint8] | type[np.float32]:
    """Type of raw rows: 8-bit pixels of images, float32 features of a table, as prepared data hold them."""
    return np.uint8 if len(release.input_shape) == 3 else np.float32


def raw_configuration(name: str, release: Release, versions: list[int]) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the model that takes raw rows.
        release: of the model that it asks.
        versions: to be loaded, ascending.
    """
    serving = release.serving
    config = model_config_pb2.ModelConfig(name=name, backend="python", max_batch_size=serving.max_batch_size)
    kind = {np.uint8: model_config_pb2.TYPE_UINT8, np.float32: model_config_pb2.TYPE_FP32}[raw_type(release)]
    config.input.add(name=RAW, data_type=kind, dims=release.input_shape)
    config.output.add(
        name=PROBABILITIES,
        data_type=model_config_pb2.TYPE_FP32,
        dims=[len(release.classes)],
        label_filename=LABELS,
    )
    config.output.add(name=CLASS, data_type=model_config_pb2.TYPE_INT64, dims=[1])
    config.instance_group.add(count=serving.instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay_us
    config.version_policy.specific.versions.extend(versions)
    text: str = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
    return text


def version_files(model: str, version: int, release: Release) -> dict[str, bytes]:
    """What a version folder of ``<model>-raw`` holds."""
    facts = {
        "model": model,
        "version": version,
        "input_shape": list(release.input_shape),
        "preprocessing": release.preprocessing,
    }
    return {CODE: SOURCE.read_bytes(), FACTS: canonical_json(facts)}


def check_raw(release: Release, *, rolled_out: bool) -> None:
    """Refuse raw rows where Triton serves immutable revisions, which hold the model alone.

    Raises:
        InputError: the release asks for them.
    """
    if rolled_out and release.serving.preprocessing == "server":
        raise InputError(
            f"{release.model}@{release.digest[:12]}: serving.preprocessing: server needs a Triton that loads on "
            "request; unset MLITES_ROLLOUT, or let the clients normalise"
        )


def prove_raw(
    triton: Triton, model: str, release: Release, folder: Path, version: int, golden: NDArray[np.float32]
) -> None:
    """Ask for raw rows under a name that no caller knows.

    Args:
        triton: the server.
        model: its name there.
        release: of the version.
        folder: its ``model.onnx``.
        version: loaded there.
        golden: inputs (n, ...) as the model takes them.

    Raises:
        WrongAnswers: it answers otherwise than the client's preprocessing and ONNX Runtime.
        TritonRefused: Triton does not load it.
    """
    raw = recover_raw(golden, release)
    session = open_session(folder / "model.onnx", threads=1)
    inputs = Preprocessing.from_json(release.preprocessing).apply(raw)
    logits = infer(session, folder / "model.onnx", inputs)
    name = f"{raw_name(model)}-check-{uuid.uuid4().hex[:12]}"
    files = {f"1/{file}": content for file, content in version_files(model, version, release).items()}
    config = configuration_json(raw_configuration(name, release, [1]))
    for replica in triton.each():
        try:
            replica.load_apart(name, config, {**files, LABELS: _labels(release)})
            replica.wait_until_ready(name, 1)
            _compare(replica, name, raw, logits, release.serving.max_batch_size)
        finally:
            with suppress(TritonRefused):
                replica.unload(name)


def load_raw(store: Store, triton: Triton, model: str, release: Release, versions: list[int]) -> None:
    """Serve raw rows by these versions of a model, which it has loaded; the last is the release's.

    Triton's next start still loads what it loaded before: see `follow_channel`.
    """
    name = raw_name(model)
    for file, content in version_files(model, versions[-1], release).items():
        store.put(model_key(name, versions[-1], file), content)
    store.put(model_key(name, LABELS), _labels(release))
    there = [one for one in versions if _read(store, model_key(name, one, FACTS))]
    for replica in triton.each():
        replica.load_with(name, configuration_json(raw_configuration(name, release, there)))
        replica.wait_until_ready(name, versions[-1])


def follow_channel(store: Store, triton: Triton, pointer: Pointer, versions: list[int]) -> None:
    """Let raw rows be answered as the channel says, or not at all where its release is normalised by the client.

    Nothing happens where it is so already.

    Args:
        store: holds releases and Triton's repository.
        triton: the server that reads it.
        pointer: of the channel.
        versions: of the model that are to stay loaded; that of the pointer among them.

    Raises:
        TritonRefused: Triton does not load it.
    """
    release, name = read_release(store, pointer.model, pointer.digest), raw_name(pointer.served_as)
    key = model_key(name, CONFIG)
    if release.serving.preprocessing == "client":
        retire_raw(store, triton, pointer.served_as)
        return
    stored = [one for one in versions if one == pointer.version or _read(store, model_key(name, one, FACTS))]
    text = raw_configuration(name, release, stored)
    if any(replica.ready_versions().get(name) != stored for replica in triton.each()):
        load_raw(store, triton, pointer.served_as, release, stored)
    if _read(store, key) != text:
        store.put(key, text.encode())


def retire_raw(store: Store, triton: Triton, model: str) -> None:
    """Stop taking raw rows for a model, if it does."""
    name = raw_name(model)
    store.delete(model_key(name, CONFIG))
    for replica in triton.each():
        if name in replica.ready_versions():
            replica.unload(name)


def forget_raw(store: Store, model: str, versions: tuple[int, ...]) -> None:
    """Remove the folders of versions that the model itself has no more."""
    for version in versions:
        store.delete_all(model_key(raw_name(model), version, ""))


def recover_raw(inputs: NDArray[np.float32], release: Release) -> NDArray[Any]:
    """Raw rows (n, ...) that are normalised to these inputs: exactly so for 8-bit pixels."""
    numbers = Preprocessing.from_json(release.preprocessing)
    across = (1, -1) + (1,) * (inputs.ndim - 2)
    mean, std = (np.asarray(one, np.float64).reshape(across) for one in (numbers.mean, numbers.std))
    raw = (inputs * std + mean) / numbers.scale
    if raw_type(release) is np.uint8:
        return np.clip(np.rint(raw), 0, 255).astype(np.uint8)
    return raw.astype(np.float32)


def _compare(triton: Triton, name: str, raw: NDArray[Any], logits: NDArray[np.float32], max_batch_size: int) -> None:
    """Ask for rows alone and together.

    Raises:
        WrongAnswers: another shape, a probability further off than logits may be, or another class.
    """
    # where logits are off by d, the slope of the softmax, at most 1/4 each way, leaves a probability off by d / 2
    tolerance = TOLERANCE * max(1.0, float(np.abs(logits).max())) / 2
    expected = softmax(logits)
    for start, end in [(0, 1), *((at, at + max_batch_size) for at in range(0, len(raw), max_batch_size))]:
        probabilities, classes = triton.infer_raw(name, 1, np.ascontiguousarray(raw[start:end]))
        wanted = expected[start:end]
        if probabilities.shape != wanted.shape or classes.shape != (len(wanted), 1):
            raise WrongAnswers(f"{name} answers with shape {probabilities.shape}, {wanted.shape} is right")
        difference = float(np.abs(probabilities - wanted).max())
        if not difference <= tolerance:  # so that NaN fails
            raise WrongAnswers(f"{name} differs from the client's preprocessing by a probability of {difference:.3g}")
        named = np.take_along_axis(wanted, classes, axis=1)[:, 0]
        if (named < wanted.max(1) - 2 * tolerance).any():
            raise WrongAnswers(f"{name} names another class than the most probable")


def _labels(release: Release) -> bytes:
    return "".join(f"{' '.join(one.split())}\n" for one in release.classes).encode()


def _read(store: Store, key: str) -> str | None:
    try:
        return store.get(key).decode()
    except MissingObject:
        return None
