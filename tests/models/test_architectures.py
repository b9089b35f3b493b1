"""The families have the shapes and sizes that their papers give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlites.compression.cost import count_cost
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.models.sizes import restore_sizes_
from mlites.recipe import MLP, ConvNet, LeNet, ResNet


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_resnet_has_depth_layers_besides_its_projections(depth: int) -> None:
    module = build_model(ResNet(family="resnet", depth=depth), (3, 32, 32), 10)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    projections = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert len(layers) - len(projections) == depth and len(projections) == 2


def test_resnet_20_has_the_papers_parameters_and_operations() -> None:
    cost = count_cost(build_model(ResNet(family="resnet", depth=20), (3, 32, 32), 10), (3, 32, 32))
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert cost["parameters"] == 269_722 + projections  # 0.27 million in the paper's table 6
    assert cost["macs"] == 40_551_040 + 16 * 32 * 256 + 32 * 64 * 64  # without projections, as commonly reported


def test_mlp_is_a_chain_of_matrix_products() -> None:
    module = build_model(MLP(family="mlp", hidden=(5, 4)), (2, 3, 3), 3, seed=1)
    rows = torch.randn(7, 2, 3, 3)
    weights = list(module.parameters())
    values = rows.reshape(7, 18)
    values = torch.clamp(values @ weights[0].T + weights[1], min=0)
    values = torch.clamp(values @ weights[2].T + weights[3], min=0)
    torch.testing.assert_close(module(rows), values @ weights[4].T + weights[5])


def test_seed_decides_the_weights_and_nothing_else_moves() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build_model(ResNet(family="resnet", depth=8), (1, 8, 8), 10, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.stem.weight, same.stem.weight) and not torch.equal(one.stem.weight, other.stem.weight)


def test_resnet_refuses_a_table() -> None:
    with pytest.raises(InputError, match=r"resnet needs images \(channels, height, width\), got rows of shape \(8,\)"):
        build_model(ResNet(family="resnet", depth=8), (8,), 10)


@pytest.mark.parametrize(
    ("layer", "smaller", "record"),
    [
        (nn.Linear(8, 6), nn.Linear(4, 3), {"kind": "linear", "in": 4, "out": 3}),
        (nn.Conv1d(8, 6, 3), nn.Conv1d(4, 3, 3), {"kind": "conv1d", "in": 4, "out": 3, "groups": 1}),
        (
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(4, 4, 3, groups=4),
            {"kind": "conv2d", "in": 4, "out": 4, "groups": 4},
        ),
        (
            nn.ConvTranspose2d(8, 6, 2),
            nn.ConvTranspose2d(4, 3, 2),
            {"kind": "conv_transpose2d", "in": 4, "out": 3, "groups": 1},
        ),
        (nn.BatchNorm1d(8), nn.BatchNorm1d(4), {"kind": "batchnorm1d", "features": 4}),
        (nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(4, affine=False), {"kind": "batchnorm2d", "features": 4}),
        (nn.GroupNorm(2, 8), nn.GroupNorm(2, 4), {"kind": "groupnorm", "channels": 4, "groups": 2}),
        (nn.LayerNorm(8), nn.LayerNorm(4), {"kind": "layernorm", "shape": [4]}),
        (nn.PReLU(8), nn.PReLU(4), {"kind": "prelu", "features": 4}),
    ],
)
def test_every_kind_of_layer_is_restored_to_its_size(
    layer: nn.Module, smaller: nn.Module, record: dict[str, int]
) -> None:
    module = nn.Sequential(layer)
    restore_sizes_(module, {"0": record})
    shapes = {name: tensor.shape for name, tensor in module[0].state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in smaller.state_dict().items()}
    assert repr(module[0]) == repr(smaller)


def test_group_normalization_whose_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="3 groups do not divide 4 channels"):
        restore_sizes_(nn.Sequential(nn.GroupNorm(2, 8)), {"0": {"kind": "groupnorm", "channels": 4, "groups": 3}})


def test_lenet_has_the_parameters_of_deep_compression() -> None:
    cost = count_cost(build_model(LeNet(family="lenet"), (1, 28, 28), 10), (1, 28, 28))
    assert cost == {"parameters": 431_080, "macs": 20 * 25 * 24**2 + 50 * 20 * 25 * 8**2 + 800 * 500 + 500 * 10}


def test_lenet_takes_images_from_16_pixels_on() -> None:
    assert build_model(LeNet(family="lenet"), (3, 16, 21), 4)(torch.zeros(2, 3, 16, 21)).shape == (2, 4)
    with pytest.raises(InputError, match=r"lenet needs images of 16x16 pixels at least, got 28x15; use resnet"):
        build_model(LeNet(family="lenet"), (1, 28, 15), 10)


def test_convnet_is_one_convolution_after_the_other() -> None:
    options = ConvNet(family="convnet", channels=(4, 6), strides=(2, 1), kernels=(5, 3))
    module = build_model(options, (2, 9, 8), 3).eval()
    rows = torch.randn(7, 2, 9, 8)
    state = module.state_dict()
    values = F.conv2d(rows, state["blocks.0.conv.weight"], stride=2, padding=2)
    assert values.shape == (7, 4, 5, 4)
    values = F.conv2d(_normalized(values).relu(), state["blocks.1.conv.weight"], padding=1)
    values = _normalized(values).relu().sum((2, 3)) / 20
    torch.testing.assert_close(module(rows), values @ state["output.weight"].T + state["output.bias"])


def _normalized(values: torch.Tensor) -> torch.Tensor:
    """By the statistics of an untrained batch normalization: mean 0, variance 1."""
    return values / (1 + 1e-5) ** 0.5
