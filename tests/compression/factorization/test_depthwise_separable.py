"""A convolution becomes a depthwise-separable one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.factorization.candidates import find_candidates
from mlites.compression.factorization.depthwise_separable import separable_choice, separate


def reconstructed(parts: nn.Sequential) -> Tensor:
    depthwise, pointwise = (part.weight.detach() for part in parts)
    return torch.einsum("ihw,oi->oihw", depthwise[:, 0], pointwise[:, :, 0, 0])


def test_fit_is_the_first_singular_pair_of_each_input_channel(convolution: nn.Conv2d) -> None:
    found = reconstructed(separate(convolution)).numpy()
    weight = convolution.weight.detach().double().numpy()
    for channel in range(8):
        u, s, vh = np.linalg.svd(weight[:, channel].reshape(10, -1))
        best = s[0] * np.outer(u[:, 0], vh[0])
        np.testing.assert_allclose(found[:, channel].reshape(10, -1), best, atol=1e-6)


def test_outputs_are_those_of_the_reconstructed_kernel(convolution: nn.Conv2d) -> None:
    rows = torch.randn(3, 8, 12, 13)
    parts = separate(convolution)
    expected = F.conv2d(
        rows,
        reconstructed(parts),
        convolution.bias,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
    )
    torch.testing.assert_close(parts(rows), expected, rtol=1e-4, atol=1e-5)


def test_no_small_change_fits_better() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 10, 3)
    parts = separate(layer)
    error = (reconstructed(parts) - layer.weight).square().sum()
    for _ in range(20):
        changed = separate(layer)
        for part in changed:
            part.weight.data += 0.01 * torch.randn_like(part.weight)
        assert (reconstructed(changed) - layer.weight).square().sum() > error


def test_separable_kernel_is_recovered_and_the_choice_tells_cost_and_energy() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 10, 3, stride=2)
    layer.weight.data = torch.einsum("ihw,oi->oihw", torch.randn(8, 3, 3), torch.randn(10, 8))
    rows = torch.randn(2, 8, 9, 9)
    parts = separate(layer)
    torch.testing.assert_close(parts(rows), layer(rows), rtol=1e-4, atol=1e-4)
    choice = separable_choice(find_candidates(nn.Sequential(layer), rows[:1], "depthwise-separable")[0]["0"])
    assert choice.energy == pytest.approx(1) and choice.macs == 16 * (8 * 9 + 8 * 10)
    assert count_cost(parts, (8, 9, 9)) == {"macs": choice.macs, "parameters": choice.parameters + 10}
