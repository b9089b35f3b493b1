"""The families have the shapes and sizes that their papers give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlites.compression.cost import count_cost
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.models.inverted_residual import InvertedResidual, SqueezeExcitation
from mlites.models.sizes import restore_sizes_
from mlites.recipe import MLP, Architecture, ConvNet, EfficientNet, LeNet, MobileNetV2, MobileNetV3, ResNet, Separable


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


PUBLISHED = [  # parameters, and multiply-accumulates in millions, as the papers give them at 224 pixels
    (Separable(family="separable"), 4_231_976, 569),
    (MobileNetV2(family="mobilenet-v2"), 3_504_872, 300),
    (MobileNetV3(family="mobilenet-v3", variant="large"), 5_483_032, 219),
    (MobileNetV3(family="mobilenet-v3", variant="small"), 2_542_856, 56),
    (EfficientNet(family="efficientnet"), 5_288_548, 390),
]


@pytest.mark.parametrize(("options", "parameters", "macs"), PUBLISHED, ids=lambda value: getattr(value, "label", ""))
def test_lightweight_networks_have_the_papers_parameters_and_operations(
    options: Architecture, parameters: int, macs: int
) -> None:
    cost = _cost_on_imagenet(options)
    assert cost["parameters"] == parameters
    assert cost["macs"] == pytest.approx(macs * 1e6, rel=0.013)


@pytest.mark.parametrize(
    ("width", "depth", "compound", "parameters"),
    [
        (1.0, 1.1, 0, 7_794_184),  # B1
        (1.0, 1.0, 1, 9_109_994),  # B2, the one whose factors are those of the formula
        (1.1, 1.2, 0, 9_109_994),
        (1.2, 1.4, 0, 12_233_232),  # B3
        (1.4, 1.8, 0, 19_341_616),  # B4
        (2.0, 3.1, 0, 66_347_960),  # B7
    ],
)
def test_scaled_efficientnets_are_those_that_were_published(
    width: float, depth: float, compound: float, parameters: int
) -> None:
    options = EfficientNet(family="efficientnet", width=width, depth=depth, compound=compound)
    assert _cost_on_imagenet(options)["parameters"] == parameters


def test_compound_scaling_resizes_images_by_115_percent_a_step() -> None:
    module = build_model(EfficientNet(family="efficientnet", width=0.1, depth=0.1, compound=-1), (1, 20, 28), 3)
    assert module.resize(torch.zeros(2, 1, 20, 28)).shape == (2, 1, 17, 24)


@pytest.mark.parametrize(("resolution", "edge"), [(None, 12), (12, 12), (9, 9), (30, 30)])
def test_resolution_resizes_with_all_pixels_and_only_where_it_differs(resolution: int | None, edge: int) -> None:
    options = Separable(family="separable", width=0.1, depth=0.1, resolution=resolution)
    module = build_model(options, (2, 12, 12), 3)
    images = torch.rand(5, 2, 12, 12)
    resized = module.resize(images)
    assert resized.shape == (5, 2, edge, edge)
    assert (resized is images) == (edge == 12)
    torch.testing.assert_close(resized.mean((2, 3)), images.mean((2, 3)), rtol=0.1, atol=0)


@pytest.mark.parametrize(("edge", "left"), [(3, 3), (8, 4), (28, 4), (32, 4), (63, 4), (64, 2), (224, 7)])
@pytest.mark.parametrize("family", ["separable", "mobilenet-v2", "mobilenet-v3", "efficientnet"])
def test_small_images_keep_their_size_in_the_first_layers(family: str, edge: int, left: int) -> None:
    module = build_model({"family": family, "width": 0.1, "depth": 0.1}, (1, edge, edge), 3).eval()
    with torch.no_grad():
        assert module.blocks(module.stem(torch.zeros(1, 1, edge, edge))).shape[2:] == (left, left)


def test_squeeze_and_excitation_gates_each_channel_by_the_means_of_all() -> None:
    gate = SqueezeExcitation(6, 2)
    rows = torch.randn(3, 6, 4, 5)
    down, down_bias, up, up_bias = (
        parameter.detach().flatten(1) if parameter.dim() > 1 else parameter.detach() for parameter in gate.parameters()
    )
    means = rows.flatten(2).sum(2) / 20
    gates = 1 / (1 + torch.exp(-(torch.clamp(means @ down.T + down_bias, min=0) @ up.T + up_bias)))
    torch.testing.assert_close(gate(rows), rows * gates[:, :, None, None])


def test_only_blocks_that_change_neither_size_nor_width_have_a_shortcut() -> None:
    blocks = build_model(MobileNetV2(family="mobilenet-v2"), (3, 224, 224), 10).blocks
    # of each stage all but the first; the paper's stages have 1, 2, 3, 4, 3, 3 and 1 blocks
    assert [block.has_shortcut for block in blocks] == [
        index > 0 for count in (1, 2, 3, 4, 3, 3, 1) for index in range(count)
    ]
    block = InvertedResidual(4, 8, 4, 3, 1, nn.ReLU).eval()
    nn.init.zeros_(block.project.conv.weight)
    rows = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(rows), rows)


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


def test_a_separable_convnet_filters_each_channel_alone_then_mixes_them() -> None:
    options = ConvNet(family="convnet", channels=(4, 6), strides=(1, 2), kernels=(3, 5), separable_from=1)
    module = build_model(options, (2, 9, 8), 3).eval()
    rows, state = torch.randn(7, 2, 9, 8), module.state_dict()
    values = _normalized(F.conv2d(rows, state["blocks.0.conv.weight"], padding=1)).relu()
    depthwise, pointwise = state["blocks.1.conv.weight"], state["blocks.2.conv.weight"]
    alone = [F.conv2d(values[:, [i]], depthwise[[i]], stride=2, padding=2) for i in range(4)]
    values = torch.einsum("oi,nihw->nohw", pointwise[:, :, 0, 0], _normalized(torch.cat(alone, 1)).relu())
    values = _normalized(values).relu().mean((2, 3))
    torch.testing.assert_close(module(rows), values @ state["output.weight"].T + state["output.bias"])


def test_a_convnet_without_a_plain_convolution_or_without_a_separable_one_is_refused() -> None:
    with pytest.raises(ValueError, match="separable_from must be 1 to 1, got 2"):
        ConvNet(family="convnet", channels=(4, 6), strides=(1, 2), separable_from=2)


def test_a_full_head_weighs_every_position() -> None:
    options = ConvNet(family="convnet", channels=(4, 6), strides=(2, 3), kernels=(4, 3), head="full")
    module = build_model(options, (1, 12, 9), 3).eval()
    rows = torch.randn(5, 1, 12, 9)
    values = module.get_submodule("blocks")(rows)
    weight, bias = module.state_dict()["output.weight"], module.state_dict()["output.bias"]
    expected = torch.stack([torch.stack([(value * one).sum() for one in weight]) + bias for value in values])
    torch.testing.assert_close(module(rows), expected)


def _cost_on_imagenet(options: Architecture) -> dict[str, int]:
    with torch.device("meta"):
        return count_cost(build_model(options, (3, 224, 224), 1000), (3, 224, 224))


def _normalized(values: torch.Tensor) -> torch.Tensor:
    """By the statistics of an untrained batch normalization: mean 0, variance 1."""
    return values / (1 + 1e-5) ** 0.5
