"""A dataset that a small model solves, and model folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlites.data.dataset import Dataset, Preprocessing, write_dataset
from mlites.models.card import ModelCard, write_model_folder
from tests.hardware.networks import CLASSES, FEATURES, forward, make_weights

TRAINED: dict[str, Any] = {"step": "train", "options": {}, "seed": 0, "data": "", "history": [], "metrics": {}}
PREPROCESSING = Preprocessing(1.0, (0.5,) * FEATURES, (2.0,) * FEATURES)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A table of 300 test rows, labelled by the teacher's own weights but for one row in ten."""
    generator = np.random.default_rng(1)
    splits = {}
    for name, rows in (("train", 60), ("validation", 30), ("test", 300)):
        inputs = generator.normal(0.5, 2, (rows, FEATURES)).astype(np.float32)
        labels = forward(make_weights(), PREPROCESSING.apply(inputs)).argmax(axis=1)
        labels[::10] = (labels[::10] + 1) % CLASSES
        splits[name] = (inputs, labels.astype(np.int64))
    folder = tmp_path / "data"
    folder.mkdir()
    return write_dataset(
        folder,
        task="tabular-classification",
        source="csv",
        classes=("a", "b", "c"),
        preprocessing=PREPROCESSING,
        splits=splits,
    )


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes model bytes as a model folder of a name."""

    def write(name: str, content: bytes, **changes: Any) -> Path:
        card = ModelCard(
            form=changes.get("form", "onnx"),
            architecture={"family": "mlp", "hidden": [16]},
            input_shape=(FEATURES,),
            classes=changes.get("classes", ("a", "b", "c")),
            preprocessing=changes.get("preprocessing", PREPROCESSING.to_json()),
            parents=("0" * 64,),
            provenance=changes.get("provenance", (TRAINED,)),
        )
        write_model_folder(tmp_path / name, content, card)
        return tmp_path / name

    return write
