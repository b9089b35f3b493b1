"""Rows of three noisy patterns, as pictures and as a table, and a teacher of the pictures."""

import pytest
import torch
from torch import nn

from mlites.models.build import build_model
from mlites.recipe import ResNet, Training
from mlites.training.loop import TrainingData, train


@pytest.fixture(scope="session")
def pictures() -> TrainingData:
    """60 rows to train on and 40 to decide on, (1, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 3
    rows = torch.randn(3, 1, 8, 8, generator=generator)[labels] + torch.randn(100, 1, 8, 8, generator=generator)
    return TrainingData(rows[:60], labels[:60], rows[60:], labels[60:], padding=(0.0,))


@pytest.fixture(scope="session")
def table(pictures: TrainingData) -> TrainingData:
    """The same rows, flat."""
    return TrainingData(
        pictures.inputs.flatten(1),
        pictures.labels,
        pictures.validation_inputs.flatten(1),
        pictures.validation_labels,
    )


@pytest.fixture(scope="session")
def tutor(pictures: TrainingData) -> nn.Module:
    """A trained ResNet-14 of width 8; tests must leave it as it is."""
    module = build_model(ResNet(family="resnet", depth=14, width=8), (1, 8, 8), 3, seed=0)
    train(module, pictures, Training(epochs=4, batch_size=32, precision="fp32"), 0, report=lambda _: None)
    return module
