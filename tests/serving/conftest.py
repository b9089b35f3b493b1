"""ONNX models of a few lines, and a name in Triton for each test."""

import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlites.models.card import ModelCard, write_model_folder
from mlites.serving.server import Triton, TritonRefused
from mlites.storage import Store

FEATURES, CLASSES = 4, ("cat", "dog", "ümlaut")


class Models:
    """Linear models with random weights, each known by its seed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def weight(self, seed: int) -> NDArray[np.float32]:
        """(features, classes)."""
        return np.random.default_rng(seed).normal(size=(FEATURES, len(CLASSES))).astype(np.float32)

    def onnx(self, seed: int, last: str | None = None) -> bytes:
        """input (batch, features) @ weight -> logits (batch, classes), with an operator by name after it if given."""
        product = "product" if last else "logits"
        nodes = [helper.make_node("MatMul", ["input", "weight"], [product])]
        if last:
            nodes.append(helper.make_node(last, [product], ["logits"]))
        graph = helper.make_graph(
            nodes,
            "linear",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", FEATURES])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
            [numpy_helper.from_array(self.weight(seed), "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())

    def folder(self, seed: int, last: str | None = None) -> Path:
        """Write the model folder."""
        folder = self._folder / f"model-{seed}"
        card = ModelCard(
            form="onnx",
            architecture={"family": "mlp", "hidden": [1]},
            input_shape=(FEATURES,),
            classes=CLASSES,
            preprocessing={"scale": 1.0, "mean": [0.0] * FEATURES, "std": [1.0] * FEATURES},
        )
        write_model_folder(folder, self.onnx(seed, last), card)
        return folder


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Makes models."""
    return Models(tmp_path)


@pytest.fixture
def golden() -> NDArray[np.float32]:
    """Ten rows."""
    return np.random.default_rng(0).normal(size=(10, FEATURES)).astype(np.float32)


@pytest.fixture
def triton(in_stack: dict[str, str]) -> Triton:
    """The session's Triton."""
    return Triton.from_environment()


@pytest.fixture
def served(in_stack: dict[str, str]) -> Store:
    """The store that the session's Triton reads."""
    return Store.open(in_stack["MLITES_STORE"])


@pytest.fixture
def name(served: Store, triton: Triton) -> Iterator[str]:
    """A model name that no other test uses; the model is out of service when the test is over."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    yield name
    served.delete(f"repository/{name}/config.pbtxt")
    with suppress(TritonRefused):  # never loaded
        triton.unload(name)
