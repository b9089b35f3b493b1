"""Small models of images and tables, released and in service under a channel, without the proofs of a promotion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlites.models.card import ModelCard, write_model_folder
from mlites.recipe import Serving
from mlites.serving.channel import Channel, next_pointer, read_channel, served_name, swap_channel
from mlites.serving.release import Release, make_release
from mlites.serving.repository import configuration, configuration_json, model_key
from mlites.serving.server import Triton
from mlites.storage import Store

CLASSES = ("cat", "dog", "owl")
SHAPES: dict[str, tuple[int, ...]] = {"images": (1, 2, 2), "table": (4,)}
SCALES = {"images": 1 / 255, "table": 1.0}
REFERENCE = {"cat": 300, "dog": 400, "owl": 300}


@dataclass(frozen=True)
class Network:
    """logits = flattened((raw * scale - mean) / std) @ weight.

    Attributes:
        kind: "images" or "table".
        seed: of the weights.
    """

    kind: str = "images"
    seed: int = 1

    @property
    def weight(self) -> NDArray[np.float32]:
        """(4, classes)."""
        return np.random.default_rng(self.seed).normal(size=(4, len(CLASSES))).astype(np.float32)

    @property
    def preprocessing(self) -> dict[str, Any]:
        channels = SHAPES[self.kind][0]
        means, stds = np.linspace(0.2, 0.5, channels), np.linspace(0.3, 0.9, channels)
        return {"scale": SCALES[self.kind], "mean": means.tolist(), "std": stds.tolist()}

    def raw(self, rows: int, seed: int = 0) -> NDArray[Any]:
        """Rows as the data would hold them."""
        draw = np.random.default_rng(seed)
        shape = (rows, *SHAPES[self.kind])
        if self.kind == "images":
            return draw.integers(0, 256, shape).astype(np.uint8)
        return draw.normal(size=shape).astype(np.float32)

    def normalised(self, raw: NDArray[Any]) -> NDArray[np.float64]:
        """In double precision, independent of the library."""
        numbers = self.preprocessing
        across = (1, -1) + (1,) * (raw.ndim - 2)
        mean, std = (np.array(numbers[key]).reshape(across) for key in ("mean", "std"))
        return (raw.astype(np.float64) * numbers["scale"] - mean) / std

    def probabilities(self, raw: NDArray[Any]) -> NDArray[np.float64]:
        """(n, classes), in double precision."""
        logits = self.normalised(raw).reshape(len(raw), -1) @ self.weight.astype(np.float64)
        powers = np.exp(logits)
        return powers / powers.sum(axis=1, keepdims=True)

    def folder(self, parent: Path) -> Path:
        """Write the model folder."""
        shape = SHAPES[self.kind]
        nodes = [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
            [numpy_helper.from_array(self.weight, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        folder = parent / f"{self.kind}-{self.seed}"
        card = ModelCard(
            form="onnx",
            architecture={"family": "mlp", "hidden": [1]},
            input_shape=shape,
            classes=CLASSES,
            preprocessing=self.preprocessing,
        )
        write_model_folder(folder, model.SerializeToString(), card)
        return folder


def serve(
    store: Store,
    triton: Triton,
    folder: Path,
    name: str,
    rows: NDArray[np.float32],
    *,
    serving: Serving | None = None,
    channel: Channel = "production",
    share: float = 1.0,
    keep_former: bool = True,
) -> Release:
    """Release a folder, load it as the channel's next version, and point the channel at it."""
    serving = serving or Serving(max_batch_size=4)
    release = make_release(store, folder, name, serving=serving, rows=rows, reference=REFERENCE)
    former = read_channel(store, name, channel)
    version = former.version + 1 if former else 1
    served = served_name(name, channel)
    for file in ("model.onnx", "model.json"):
        store.put(model_key(served, version, file), (folder / file).read_bytes())
    versions = [former.version, version] if former and keep_former else [version]
    from mlites.models.card import read_card

    text = configuration(served, read_card(folder), serving, versions, 1)
    store.put(model_key(served, "config.pbtxt"), text.encode())
    triton.load_with(served, configuration_json(text))
    triton.wait_until_ready(served, version)
    swap_channel(store, next_pointer(name, channel, release.digest, version, former, share=share), former)
    return release


def withdraw(store: Store, triton: Triton, name: str) -> None:
    """Take every channel and ensemble of a model out of service, and forget it."""
    from contextlib import suppress

    from mlites.serving.server import TritonRefused

    served = [key.split("/")[1] for key in store.keys(f"repository/{name}") if key.endswith("/config.pbtxt")]
    for one in sorted(served, key=len, reverse=True):
        store.delete(model_key(one, "config.pbtxt"))
        with suppress(TritonRefused):
            triton.unload(one)
    for prefix in ("repository", "releases", "channels", "samples", "watch"):
        for key in store.keys(f"{prefix}/{name}"):
            store.delete(key)
