"""A convolution becomes three by Tucker-2."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.factorization.candidates import find_candidates
from mlites.compression.factorization.tucker import factorize_tucker, tucker_choices


def reconstructed(parts: nn.Sequential) -> Tensor:
    first, core, last = (part.weight.detach() for part in parts)
    return torch.einsum("or,rshw,si->oihw", last[:, :, 0, 0], core, first[:, :, 0, 0])


def test_full_rank_computes_the_same(convolution: nn.Conv2d) -> None:
    rows = torch.randn(3, 8, 12, 13)
    parts = factorize_tucker(convolution, 8, 10)
    torch.testing.assert_close(parts(rows), convolution(rows), rtol=1e-5, atol=1e-5)


def test_outputs_are_those_of_the_reconstructed_kernel(convolution: nn.Conv2d) -> None:
    rows = torch.randn(3, 8, 12, 13)
    parts = factorize_tucker(convolution, 3, 5)
    expected = F.conv2d(
        rows,
        reconstructed(parts),
        convolution.bias,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
    )
    torch.testing.assert_close(parts(rows), expected, rtol=1e-4, atol=1e-5)


def test_error_falls_with_the_rank_and_is_at_most_what_the_choices_say() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 10, 3)
    candidate = find_candidates(nn.Sequential(layer), torch.zeros(1, 8, 6, 6), "tucker")[0]["0"]
    said = {choice.ranks: choice.energy for choice in tucker_choices(candidate)}
    errors = []
    for rank in range(1, 9):
        error = (layer.weight - reconstructed(factorize_tucker(layer, rank, rank))).square().sum()
        errors.append((error / layer.weight.square().sum()).item())
        assert 1 - errors[-1] >= said[rank, rank] - 1e-6
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.5 > errors[-2]
    assert said[8, 10] == pytest.approx(1)


def test_rank_of_a_kernel_made_of_few_channels_is_found() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 10, 3, bias=False)
    layer.weight.data = torch.einsum("or,rshw,is->oihw", torch.randn(10, 2), torch.randn(2, 3, 3, 3), torch.randn(8, 3))
    candidate = find_candidates(nn.Sequential(layer), torch.zeros(1, 8, 6, 6), "tucker")[0]["0"]
    exact = [choice.ranks for choice in tucker_choices(candidate) if choice.energy > 1 - 1e-9]
    assert min(exact) == (3, 2)
    torch.testing.assert_close(reconstructed(factorize_tucker(layer, 3, 2)), layer.weight.detach())


def test_choices_cost_what_the_layers_do() -> None:
    layer = nn.Conv2d(16, 24, 3, stride=2, padding=1)
    candidate = find_candidates(nn.Sequential(layer), torch.zeros(1, 16, 9, 9), "tucker")[0]["0"]
    for choice in tucker_choices(candidate):
        parts = factorize_tucker(layer, *choice.ranks)
        assert count_cost(parts, (16, 9, 9)) == {"macs": choice.macs, "parameters": choice.parameters + 24}
        ins, outs = choice.ranks
        assert choice.macs == 16 * ins * 81 + ins * outs * 9 * 25 + outs * 24 * 25  # Kim et al., equation 7


def test_impossible_ranks_are_refused() -> None:
    layer = nn.Conv2d(8, 10, 3)
    with pytest.raises(ValueError, match=r"rank_in must be 1 to 8 for weight \(10, 8, 3, 3\), got 9"):
        factorize_tucker(layer, 9, 1)
    with pytest.raises(ValueError, match="rank_out must be 1 to 10"):
        factorize_tucker(layer, 1, 0)
    with pytest.raises(ValueError, match="one group and pad evenly"):
        factorize_tucker(nn.Conv2d(8, 8, 3, groups=2), 1, 1)
