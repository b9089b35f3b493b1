"""Three classes of small pictures, a way to train on them that is quick, and the training that pruning may repeat."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mlites.compression.pruning.rewinding import Origin
from mlites.models.build import build_model
from mlites.recipe import MLP, ResNet, Training
from mlites.training.loop import TrainingData, train

SHAPE = (1, 8, 8)
FAMILIES: dict[str, MLP | ResNet] = {
    "mlp": MLP(family="mlp", hidden=(16, 8)),
    "resnet": ResNet(family="resnet", depth=8, width=8),
}


@pytest.fixture(scope="session")
def data() -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    centres = torch.randn(3, *SHAPE, generator=generator)
    inputs = centres[labels] + torch.randn(120, *SHAPE, generator=generator)
    return TrainingData(inputs[:84], labels[:84], inputs[84:], labels[84:], (-1.0,))


@pytest.fixture(scope="session")
def origins() -> Callable[[str], Origin]:
    """Family -> its training, without momentum, so that weights are all that an epoch hands on."""

    def origin(family: str) -> Origin:
        options = Training(epochs=4, batch_size=16, learning_rate=0.05, momentum=0, schedule="step", precision="fp32")
        return Origin(lambda: build_model(FAMILIES[family], SHAPE, 3, seed=5), options, seed=5)

    return origin


@pytest.fixture(scope="session")
def trained(
    data: TrainingData, origins: Callable[[str], Origin]
) -> dict[str, tuple[nn.Module, list[dict[str, float]]]]:
    """Family -> the network at the end of its training, and that training's history."""
    found = {}
    for family in FAMILIES:
        origin = origins(family)
        module = origin.build()
        found[family] = (module, train(module, data, origin.options, origin.seed, report=lambda _: None))
    return found
