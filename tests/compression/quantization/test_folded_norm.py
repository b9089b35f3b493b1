"""A folded normalization trains as a normalization does, and ends as the plain layer."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlites.compression.quantization.fake_quantization import Clock, WeightQuantizer
from mlites.compression.quantization.folded_norm import FoldedNorm, Moments, NormBias, NormOutput, find_folded
from mlites.compression.quantization.onnx_network import OnnxNetwork
from mlites.compression.quantization.scheme import prepare
from mlites.export import export_onnx


class Exactly(WeightQuantizer):
    """Weights that need no rounding."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=6), nn.Flatten(),
        nn.Linear(6 * 16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    for one in (module[1], module[6]):
        nn.init.uniform_(one.weight, -2, 2)
        nn.init.normal_(one.bias)
    module.train()
    for _ in range(20):
        module(torch.randn(64, 2, 6, 6))
    return module.eval()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def test_folded_layers_are_found_with_the_factors_of_their_normalization(network: nn.Sequential) -> None:
    found = find_folded(network, prepare(export_onnx(network, (2, 6, 6))))
    expected = [(one.weight / (one.running_var + one.eps).sqrt()).detach() for one in (network[1], network[6])]
    assert len(found) == 2
    for one, factor in zip(found, expected, strict=True):
        assert torch.allclose(one.factor, factor, rtol=1e-4)


def test_a_network_without_normalization_has_nothing_folded() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    assert find_folded(module, prepare(export_onnx(module, (2, 6, 6)))) == []


def test_channels_without_weight_do_not_break_the_factors() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        module[0].weight[0] = 0
        module[1].weight[1] = 0
        module[1].weight[2:] = 3
        module[1].bias[:] = 0.1  # a bias of zeros would be left out of the graph
    (found,) = find_folded(module, prepare(export_onnx(module, (2, 6, 6))))
    assert found.factor.tolist() == pytest.approx([1.0, 1.0, 3.0, 3.0], rel=1e-4)


def test_moments_are_those_of_all_rows_together() -> None:
    values = torch.randn(30, 4, 5, 5) * 3 + 1
    moments = Moments()
    for piece in torch.split(values, 7):
        assert moments(piece) is piece
    mean, variance = moments.result()
    assert np.allclose(mean, values.mean((0, 2, 3)), atol=1e-5)
    assert np.allclose(variance, values.var((0, 2, 3), correction=0), rtol=1e-4)


@pytest.mark.parametrize("freeze_after", [0, 5])
def test_training_is_that_of_the_original_layers(network: nn.Sequential, rows: Tensor, freeze_after: int) -> None:
    """Until it freezes: forward, gradients and running statistics of torch's own; then those of the plain layer."""
    convolution, norm = network[0], network[1]
    prepared = prepare(export_onnx(network, (2, 6, 6)))
    found = find_folded(network, prepared)[0]
    start = OnnxNetwork(prepared, [], {found.output: (moments := Moments())})
    start(rows)
    clock = Clock()
    bias = start.stored(found.bias)
    folded = FoldedNorm(found.factor, bias, moments.result(), Exactly(0, 127), clock, freeze_after)
    weight = folded.unfold(start.stored(found.weight)).detach().requires_grad_()
    assert torch.allclose(weight, convolution.weight, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # the same split into statistics and scale as the original's, so that they can be compared
        folded.scale.copy_(norm.weight), folded.shift.copy_(norm.bias)
        folded.mean.copy_(norm.running_mean), folded.variance.copy_(norm.running_var)
    frozen = freeze_after == 0
    network.zero_grad()
    expected = norm.train(not frozen)(convolution(rows))
    expected.square().mean().backward()
    clock.batches = 1
    folded.train()
    assert folded.normalizes != frozen
    values = nn.functional.conv2d(rows, folded(weight), NormBias(folded, nn.Identity())(bias))
    values = NormOutput(folded, nn.Identity())(values)
    values.square().mean().backward()
    assert torch.allclose(values, expected, atol=1e-4)
    assert torch.allclose(weight.grad, convolution.weight.grad, rtol=1e-3, atol=1e-5)
    assert torch.allclose(folded.scale.grad, norm.weight.grad, rtol=1e-3, atol=1e-5)
    assert torch.allclose(folded.mean, norm.running_mean, atol=1e-5)
    assert torch.allclose(folded.variance, norm.running_var, rtol=1e-4)


def test_folding_is_exact(network: nn.Sequential, rows: Tensor) -> None:
    clock, quantizer = Clock(), Exactly(0, 127)
    moments = (torch.randn(6).double(), torch.rand(6).double() + 0.1)
    factor = torch.tensor([0.5, -2.0, 1.0, 30.0, 1e-3, -1.0])
    folded = FoldedNorm(factor, torch.randn(6), moments, quantizer, clock, 1).eval()
    weight = network[0].weight
    plain = nn.functional.conv2d(rows, folded.fold(weight), folded.folded_bias())
    slow = nn.functional.batch_norm(
        nn.functional.conv2d(rows, weight), folded.mean, folded.variance, folded.scale, folded.shift
    )
    assert torch.allclose(plain, slow, rtol=1e-4, atol=1e-4)
    assert torch.allclose(folded.factor(), factor, rtol=1e-5)
    assert torch.allclose(folded.unfold(folded.fold(weight)), weight, rtol=1e-5)
