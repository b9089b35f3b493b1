"""Releases that must never be served, each whole by its own digests and bad in one way."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlites.files import canonical_json, digest_bytes
from mlites.models.card import ModelCard, write_model_folder
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving.release import FILES, Golden, Object, Release, _pack, content_digest, make_release
from mlites.storage import Store

FEATURES, CLASSES = 64, ("cat", "dog", "eel", "fox")
STRICT = Serving(promotion=Promotion(trial_seconds=0.4, shadow_seconds=0.3, watch_seconds=0.3))
QUICK = Serving(promotion=STRICT.promotion.model_copy(update={"slower": 50}))  # the tests' machine may be busy
MIB = 1 << 20


def rows(count: int = 32) -> NDArray[np.float32]:
    """Inputs (count, FEATURES)."""
    return np.random.default_rng(5).normal(size=(count, FEATURES)).astype(np.float32)


def onnx(seed: int = 1, *, work: int = 0, ballast_mib: int = 0, nan: bool = False) -> bytes:
    """logits = input @ weight, the same classes for all seeds and other numbers.

    Args:
        seed: scales the logits.
        work: matrix products of 512x512 on the way, which change nothing.
        ballast_mib: weights that take part and change nothing.
        nan: answer with the logarithm of a negative number.
    """
    weight = np.random.default_rng(9).normal(size=(FEATURES, len(CLASSES))) * (1 + seed / 100)
    nodes = [helper.make_node("MatMul", ["input", "weight"], ["product"])]
    weights = {"weight": weight.astype(np.float32)}
    last = "product"
    if work:
        weights |= {"wide": np.zeros((FEATURES, 512), np.float32), "square": np.eye(512, dtype=np.float32)}
        weights["narrow"] = np.zeros((512, len(CLASSES)), np.float32)
        nodes.append(helper.make_node("MatMul", ["input", "wide"], ["w0"]))
        nodes += [helper.make_node("MatMul", [f"w{at}", "square"], [f"w{at + 1}"]) for at in range(work)]
        nodes += [
            helper.make_node("MatMul", [f"w{work}", "narrow"], ["nothing"]),
            helper.make_node("Add", [last, "nothing"], ["worked"]),
        ]
        last = "worked"
    if ballast_mib:
        count = ballast_mib * MIB // 4 // FEATURES
        weights |= {"ballast": np.zeros((FEATURES, count), np.float32)}
        nodes += [
            helper.make_node("MatMul", ["input", "ballast"], ["heavy"]),
            helper.make_node("ReduceSum", ["heavy"], ["sum"], keepdims=1, noop_with_empty_axes=0),
            helper.make_node("Mul", ["sum", "zero"], ["none"]),
            helper.make_node("Add", [last, "none"], ["weighed"]),
        ]
        weights["zero"] = np.zeros((1,), np.float32)
        last = "weighed"
    if nan:
        weights["minus"] = np.array([-1e9], np.float32)
        nodes += [helper.make_node("Add", [last, "minus"], ["low"]), helper.make_node("Log", ["low"], ["nan"])]
        last = "nan"
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def expected(seed: int, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the model of a seed."""
    weight = np.random.default_rng(9).normal(size=(FEATURES, len(CLASSES))) * (1 + seed / 100)
    return np.asarray(inputs @ weight.astype(np.float32), np.float32)


def card() -> ModelCard:
    """Of every model here."""
    return ModelCard(
        form="onnx",
        architecture={"family": "mlp", "hidden": [1]},
        input_shape=(FEATURES,),
        classes=CLASSES,
        preprocessing={"scale": 1.0, "mean": [0.0] * FEATURES, "std": [1.0] * FEATURES},
    )


def labels(inputs: NDArray[np.float32]) -> tuple[str, ...]:
    """The true classes, which a good model names."""
    return tuple(CLASSES[one] for one in expected(1, inputs).argmax(1))


def good(store: Store, model: str, folder: Path, seed: int, serving: Serving = QUICK, **shape: Any) -> Release:
    """Make a release that is as it should be."""
    write_model_folder(folder / f"good-{seed}", onnx(seed, **shape), card())
    return make_release(
        store,
        folder / f"good-{seed}",
        model,
        serving=serving,
        rows=rows(),
        labels=labels(rows()),
        metrics={"accuracy": 1.0},
    )


def plant(
    store: Store,
    model: str,
    folder: Path,
    content: bytes,
    change: Callable[[ModelCard], ModelCard] = lambda one: one,
    golden_seed: int = 2,
    serving: Serving = STRICT,
) -> str:
    """Write a release whose digests are right, past the checks of `make_release`; its digest."""
    target = folder / "planted"
    written = write_model_folder(target, content, change(card()))
    inputs = rows()
    if written.input_shape != (FEATURES,):
        inputs = np.resize(inputs, (len(inputs), *written.input_shape))
    logits = np.resize(expected(golden_seed, rows()), (len(inputs), len(written.classes)))
    (target / "golden.npz").write_bytes(_pack(Golden(inputs, logits, labels(rows()))))
    blobs = {name: (target / name).read_bytes() for name in FILES}
    release = Release(
        model=model,
        objects={name: Object(sha256=digest_bytes(data), size=len(data)) for name, data in blobs.items()},
        input_shape=written.input_shape,
        classes=written.classes,
        preprocessing=written.preprocessing,
        serving=serving,
        golden={"samples": len(inputs), "accuracy": 1.0},  # type: ignore[arg-type]
        metrics={"accuracy": 1.0},
        model_digest=written.digest,
    )
    manifest = release.model_dump(mode="json", exclude_none=True)
    digest = content_digest(manifest)
    for name, data in blobs.items():
        store.put(f"releases/{model}/{digest}/{name}", data)
    store.put(f"releases/{model}/{digest}/release.json", canonical_json({**manifest, "digest": digest}))
    return digest


def corrupt(store: Store, model: str, digest: str) -> str:
    """Turn one bit of the model in the store."""
    key = f"releases/{model}/{digest}/model.onnx"
    content = bytearray(store.get(key))
    content[len(content) // 2] ^= 1
    store.put(key, bytes(content))
    return digest


def mislabel(one: ModelCard) -> ModelCard:
    """The same classes in another order."""
    return dataclasses.replace(one, classes=one.classes[::-1])


def misshape(one: ModelCard) -> ModelCard:
    """A configuration that does not fit the model."""
    numbers = {"scale": 1.0, "mean": [0.0] * (FEATURES + 1), "std": [1.0] * (FEATURES + 1)}
    return dataclasses.replace(one, input_shape=(FEATURES + 1,), preprocessing=numbers)
