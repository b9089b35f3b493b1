"""Convolutions of every geometry that a factorization has to keep."""

import pytest
import torch
from torch import nn

GEOMETRIES = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "same": {"kernel_size": 5, "padding": "same", "bias": False},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "oblong": {"kernel_size": (3, 5), "padding": (0, 2), "stride": (2, 1), "dilation": (2, 1)},
}


@pytest.fixture(params=list(GEOMETRIES))
def convolution(request: pytest.FixtureRequest) -> nn.Conv2d:
    """8 channels to 10, as each geometry has it."""
    torch.manual_seed(0)
    return nn.Conv2d(8, 10, **GEOMETRIES[request.param])
