"""A small dataset folder of pictures in three classes, and a teacher trained on it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset, Preprocessing, write_dataset
from mlites.recipe import ResNet, Teacher, Training


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Each class is a blurred pattern of its own, in noise."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, (3, 1, 8, 8))
    splits = {}
    for name, count in (("train", 150), ("validation", 60), ("test", 60)):
        labels = np.arange(count) % 3
        noisy = patterns[labels] * 0.5 + generator.integers(0, 128, (count, 1, 8, 8))
        splits[name] = (noisy.astype(np.uint8), labels.astype(np.int64))
    scaled = splits["train"][0] / 255
    return write_dataset(
        folder,
        task="image-classification",
        source="npz",
        classes=("a", "b", "c"),
        preprocessing=Preprocessing(1 / 255, (float(scaled.mean()),), (float(scaled.std()),)),
        splits=splits,
    )


@pytest.fixture(scope="session")
def teacher(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of a trained ResNet-8 of width 8."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    options = Teacher(
        architecture=ResNet(family="resnet", depth=8, width=8),
        training=Training(epochs=3, batch_size=32, precision="fp32"),
    )
    train_teacher(options, dataset, 0, folder)
    return folder
