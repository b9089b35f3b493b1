"""A student starts with its teacher's own numbers, from every k-th block."""

import copy

import pytest
import torch
from torch import nn

from mlites.compression.distillation.initialization import initialize_from_teacher
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.recipe import MLP, ResNet
from tests.compression.distillation.networks import Staged, Transformer


def resnet(depth: int, width: int = 4, seed: int = 0) -> nn.Module:
    module = build_model(ResNet(family="resnet", depth=depth, width=width), (1, 8, 8), 3, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if "running" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return module


@pytest.mark.parametrize(
    ("teacher", "student", "taken"),
    [
        (20, 8, [0, 3, 6]),
        (26, 14, [0, 2, 4, 5, 8, 9]),
        (14, 14, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_blocks_come_from_even_distances_of_a_deeper_teacher(teacher: int, student: int, taken: list[int]) -> None:
    source, target = resnet(teacher, seed=1), resnet(student, seed=2)
    before = copy.deepcopy(target.state_dict())
    started, layers, fraction = initialize_from_teacher(target, source)
    assert fraction == 1
    theirs = source.state_dict()
    for name, tensor in started.state_dict().items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            name = f"blocks.{taken[int(block)]}.{rest}"
        assert torch.equal(tensor, theirs[name]), name
    if teacher > student:
        assert layers["blocks.1"] == f"blocks.{taken[1]}" and layers["output"] == "output"
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_whole_network_of_the_same_shapes_is_copied() -> None:
    started, layers, fraction = initialize_from_teacher(resnet(8, seed=1), resnet(8, seed=2))
    assert layers == {"": ""} and fraction == 1
    rows = torch.randn(2, 1, 8, 8)
    assert torch.equal(started.eval()(rows), resnet(8, seed=2).eval()(rows))


def test_deeper_student_takes_what_there_is() -> None:
    source, target = resnet(8, seed=1), resnet(14, seed=2)
    started, layers, fraction = initialize_from_teacher(target, source)
    assert torch.equal(started.get_parameter("blocks.0.conv1.weight"), source.get_parameter("blocks.0.conv1.weight"))
    assert torch.equal(started.get_parameter("blocks.1.conv1.weight"), target.get_parameter("blocks.1.conv1.weight"))
    assert "blocks.1" not in layers and 0 < fraction < 1


def test_users_blocks_within_stages_and_transformers_are_found() -> None:
    _, layers, fraction = initialize_from_teacher(Staged(blocks=2), Staged(blocks=4))
    assert fraction == 1 and layers["first.1"] == "first.2" and layers["second.0"] == "second.0"
    assert layers["second.1"] == "second.1"
    _, layers, fraction = initialize_from_teacher(Transformer(blocks=2), Transformer(blocks=4))
    assert fraction == 1 and layers == {
        "embed": "embed",
        "blocks.0": "blocks.0",
        "blocks.1": "blocks.2",
        "head": "head",
    }


def test_layers_of_other_widths_keep_their_own_weights() -> None:
    narrow, wide = (build_model(MLP(family="mlp", hidden=hidden), (6,), 3) for hidden in ((8, 5), (8, 7)))
    started, layers, fraction = initialize_from_teacher(narrow, wide)
    assert layers == {"hidden.0": "hidden.0"}
    assert fraction == pytest.approx((6 * 8 + 8) / (6 * 8 + 8 + 8 * 5 + 5 + 5 * 3 + 3))
    assert torch.equal(started.get_parameter("output.bias"), narrow.get_parameter("output.bias"))


def test_networks_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(InputError, match=r"no layer of the student \(ResNetClassifier\) has the name and the shapes"):
        initialize_from_teacher(resnet(8), Transformer())
