"""N:M sparsity keeps exactly the n largest of every m inputs that meet in one sum."""

from itertools import product

import pytest
import torch
from torch import nn

from mlites.compression.pruning.magnitude import apply_masks_
from mlites.compression.pruning.n_m import n_m_masks
from mlites.errors import InputError


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(16, 5),
        nn.Conv2d(8, 3, 3),
        nn.Conv2d(16, 4, 3, groups=2),
        nn.Conv1d(8, 4, 5),
        nn.ConvTranspose2d(8, 3, 2),
    ],
)
def test_every_group_keeps_its_n_largest(layer: nn.Module, n: int, m: int) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.get_parameter("weight"))
    masks, whole = n_m_masks(nn.Sequential(layer), n, m)
    weight, mask = layer.get_parameter("weight").detach(), masks["0.weight"]
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    assert whole == {} and mask.shape == weight.shape
    others = [range(size) for index, size in enumerate(weight.shape) if index != axis]
    for place in product(*others):
        index = [*place[:axis], slice(None), *place[axis:]]
        values, kept = weight[tuple(index)].abs(), mask[tuple(index)]
        for start in range(0, len(values), m):
            group, stays = values[start : start + m], kept[start : start + m]
            assert int(stays.sum()) == n and float(group[stays].min()) >= float(group[~stays].max())


def test_example_of_two_in_four() -> None:
    layer = nn.Linear(8, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -4, 3, 2, 0, 0, 0, 0]]))
    masks, _ = n_m_masks(layer, 2, 4)
    apply_masks_(layer, masks)
    assert layer.weight.tolist() == [[0, -4, 3, 0, 0, 0, 0, 0]] and int(masks["weight"].sum()) == 4


def test_layers_that_cannot_take_the_pattern_stay_whole_with_the_reason() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Embedding(10, 8))
    masks, whole = n_m_masks(module, 2, 4)
    assert set(masks) == {"1.weight"}
    assert whole == {
        "0.weight": "3 inputs are no multiple of 4",
        "2.weight": "the pattern is for linear layers and convolutions",
    }


def test_network_without_such_a_layer_is_refused() -> None:
    module = nn.Sequential(*(nn.Linear(5, 5) for _ in range(5)))
    with pytest.raises(InputError, match=r"no layer can take the pattern 2:4: 0.weight: 5 inputs .* and 2 more; use"):
        n_m_masks(module, 2, 4)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (0, 4), (5, 4)])
def test_impossible_patterns_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=rf"n must be 1 to 3 for m 4, got {n}"):
        n_m_masks(nn.Linear(8, 8), n, m)
