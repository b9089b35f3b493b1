"""Linear layers and 1x1 convolutions become two thinner ones."""

import pytest
import torch
from torch import nn

from mlites.compression.cost import count_cost
from mlites.compression.factorization.candidates import Candidate, find_candidates
from mlites.compression.factorization.svd import factorize_linear, factorize_pointwise, svd_choices


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_error_equals_the_discarded_singular_values(rank: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 12)
    down, up = factorize_linear(layer, rank)
    discarded = torch.linalg.svdvals(layer.weight.detach())[rank:].square().sum().sqrt()
    error = torch.linalg.matrix_norm(layer.weight - up.weight @ down.weight)
    assert error.item() == pytest.approx(discarded.item(), abs=1e-5)
    assert (down.out_features, up.in_features) == (rank, rank) and down.bias is None


def test_full_rank_computes_the_same() -> None:
    torch.manual_seed(0)
    rows = torch.randn(5, 7, 16)
    for layer in (nn.Linear(16, 12), nn.Linear(16, 20, bias=False)):
        torch.testing.assert_close(factorize_linear(layer, min(layer.weight.shape))(rows), layer(rows))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": False}, {"padding": 1, "stride": (1, 2)}])
def test_pointwise_convolution_of_full_rank_computes_the_same(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer, rows = nn.Conv2d(12, 10, 1, **options), torch.randn(3, 12, 7, 8)
    torch.testing.assert_close(factorize_pointwise(layer, 10)(rows), layer(rows), rtol=1e-4, atol=1e-5)


def test_choices_cost_and_keep_what_the_layers_do() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 1, stride=2)
    candidate = find_candidates(nn.Sequential(layer), torch.zeros(1, 16, 9, 9), "svd")[0]["0"]
    for choice in svd_choices(candidate):
        parts = factorize_pointwise(layer, *choice.ranks)
        assert count_cost(parts, (16, 9, 9)) == {"macs": choice.macs, "parameters": choice.parameters + 24}
        weight = parts[1].weight[:, :, 0, 0] @ parts[0].weight[:, :, 0, 0]
        error = (weight - layer.weight[:, :, 0, 0]).square().sum() / layer.weight.square().sum()
        assert choice.energy == pytest.approx(1 - error.item(), abs=1e-5)
    assert candidate.whole.macs == count_cost(layer, (16, 9, 9))["macs"] == 16 * 24 * 25


def test_layer_is_left_unchanged_and_no_random_number_is_drawn() -> None:
    layer = nn.Linear(6, 4).half()
    before, state = layer.weight.detach().clone(), torch.random.get_rng_state()
    down, up = factorize_linear(layer, 2)
    assert torch.equal(layer.weight, before) and torch.equal(torch.random.get_rng_state(), state)
    assert down.weight.dtype == up.bias.dtype == torch.float16


def test_impossible_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank must be 1 to 12 for weight \(12, 16\), got 99"):
        factorize_linear(nn.Linear(16, 12), 99)
    with pytest.raises(ValueError, match="rank must be 1 to 4"):
        factorize_pointwise(nn.Conv2d(4, 4, 1), 0)
    with pytest.raises(ValueError, match="kernel must be 1x1, got 3x1"):
        factorize_pointwise(nn.Conv2d(4, 4, (3, 1)), 1)
    with pytest.raises(ValueError, match="one group and pad evenly with zeros"):
        factorize_pointwise(nn.Conv2d(4, 4, 1, groups=2), 1)


def test_a_linear_layer_costs_as_often_as_it_has_positions() -> None:
    candidate: Candidate = find_candidates(nn.Sequential(nn.Linear(8, 8)), torch.zeros(1, 5, 8), "svd")[0]["0"]
    assert candidate.whole.macs == 5 * 64 and svd_choices(candidate)[2].macs == 5 * 3 * 16
