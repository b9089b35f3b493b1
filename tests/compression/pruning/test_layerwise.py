"""Layer-wise pruning takes each layer's own share of its smallest weights."""

import numpy as np
import pytest
import torch
from torch import nn

from mlites.compression.pruning.layerwise import layerwise_masks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 3))


def test_each_layer_loses_its_rate_of_the_smallest() -> None:
    module, rates = network(), {"0.weight": 0.5, "2.weight": 0.9, "3.weight": 0.0}
    for name, mask in layerwise_masks(module, rates).items():
        weight = module.get_parameter(name).detach().numpy().ravel()
        expected = np.ones(weight.size, dtype=bool)
        expected[np.argsort(np.abs(weight), kind="stable")[: round(rates[name] * weight.size)]] = False
        assert np.array_equal(mask.numpy().ravel(), expected)


def test_layers_without_a_rate_have_no_mask() -> None:
    assert set(layerwise_masks(network(), {"2.weight": 0.3})) == {"2.weight"}


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_rate_outside_its_range_is_refused_by_name(rate: float) -> None:
    with pytest.raises(ValueError, match=r"the rate of 2.weight must be at least 0 and below 1"):
        layerwise_masks(network(), {"2.weight": rate})
