"""A folded network answers as before, and folds to the same weights again when it is exported."""

import copy

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mlites.compression.sharing.batch_norm_folding import Bias, fold_batch_norms_
from mlites.export import export_onnx
from mlites.models.build import build_model


def settled(module: nn.Module) -> nn.Module:
    """With statistics and scales that differ from channel to channel."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            size = layer.num_features
            layer.running_mean = torch.randn(size, generator=generator)
            layer.running_var = torch.rand(size, generator=generator) + 0.2
            with torch.no_grad():
                layer.weight.copy_(torch.randn(size, generator=generator))
                layer.bias.copy_(torch.randn(size, generator=generator))
    return module.eval()


NETWORKS = {
    "resnet": lambda: build_model({"family": "resnet", "depth": 8, "width": 8}, (1, 8, 8), 3),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)),
    "bias": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 3)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_answers_stay_and_what_is_left_adds_a_bias(kind: str) -> None:
    module = settled(NETWORKS[kind]())
    inputs = torch.randn(5, 1, 8, 8)
    folded = copy.deepcopy(module)
    norms = fold_batch_norms_(folded)
    count = sum(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in module.modules())
    assert len(norms) == count > 0
    expected = module(inputs).detach()
    torch.testing.assert_close(folded(inputs), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    for norm in norms.values():
        values = torch.randn(4, norm.num_features, *[3, 3] if isinstance(norm, nn.BatchNorm2d) else [])
        torch.testing.assert_close(norm(values), Bias(norm)(values), rtol=1e-6, atol=1e-6)


def test_the_export_holds_the_folded_weights_themselves() -> None:
    module = settled(NETWORKS["resnet"]())
    fold_batch_norms_(module)
    model: onnx.ModelProto = export_onnx(module, (1, 8, 8))
    found = {numpy_helper.to_array(one).tobytes() for one in model.graph.initializer}
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.detach().numpy().tobytes() in found


class Twice(nn.Module):
    """Both uses a layer's output before normalization, and applies one normalization twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(1, 1, 1) for _ in range(3))
        self.norm, self.again = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.first(inputs)
        values = values + self.norm(values)
        result: Tensor = self.again(self.second(values)) + self.again(self.third(values))
        return result


class Untraceable(nn.Module):
    """What it computes depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.norm(self.layer(inputs)) if inputs.sum() > 0 else inputs
        return result


@pytest.mark.parametrize(
    "module", [Twice(), Untraceable(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))]
)
def test_what_does_not_stand_alone_is_left(module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert fold_batch_norms_(module.eval()) == {}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
