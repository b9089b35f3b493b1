"""A convolution becomes four by CP."""

import pytest
import tensorly
import torch
import torch.nn.functional as F
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.factorization.candidates import Candidate, find_candidates
from mlites.compression.factorization.cp import (
    PENALTY,
    cp_by_energy,
    cp_choices,
    factorize_cp,
    fit_cp,
    kept_energy,
    sweep,
)


def reconstructed(parts: nn.Sequential) -> Tensor:
    ins, columns, rows, outs = (part.weight.detach() for part in parts)
    return torch.einsum("ri,rh,rw,or->oihw", ins[:, :, 0, 0], columns[:, 0, :, 0], rows[:, 0, 0, :], outs[:, :, 0, 0])


def of_rank(rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(size, rank, generator=generator) for size in (12, 10, 3, 3)]
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


@pytest.mark.parametrize("rank", [2, 7])
def test_sweeps_are_those_of_an_independent_routine(rank: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(12, 10, 3, 5).double()
    tensor /= tensor.norm()
    start = tuple(torch.randn(size, rank).double() for size in tensor.shape)
    factors, missed = start, 1.0
    for _ in range(6):
        factors, missed = sweep(tensor, factors)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        expected = cp_to_tensor(parafac(tensor, rank, n_iter_max=6, tol=0, init=(None, list(start)), l2_reg=PENALTY))
    found = torch.einsum("or,ir,hr,wr->oihw", *factors)
    torch.testing.assert_close(found, expected)
    assert missed == pytest.approx((tensor - found).square().sum().item())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_kernel_of_a_rank_is_recovered(rank: int) -> None:
    weight = of_rank(rank, seed=rank)
    factors = fit_cp(weight, rank, seed=0)
    found = torch.einsum("or,ir,hr,wr->oihw", *factors).float()
    assert ((found - weight).norm() / weight.norm()).item() < 0.01
    assert kept_energy(weight, factors) == pytest.approx(1, abs=1e-4)
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_outputs_are_those_of_the_reconstructed_kernel(convolution: nn.Conv2d) -> None:
    rows = torch.randn(3, 8, 12, 13)
    parts = factorize_cp(convolution, 7)
    expected = F.conv2d(
        rows,
        reconstructed(parts),
        convolution.bias,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
    )
    torch.testing.assert_close(parts(rows), expected, rtol=1e-4, atol=1e-5)
    assert [part.groups for part in parts] == [1, 7, 7, 1]


def test_fit_is_the_same_each_time_better_with_more_components_and_free_of_cancelling_ones() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 10, 3, 3)
    kept = [kept_energy(weight, fit_cp(weight, rank, seed=3)) for rank in (2, 6, 12, 24)]
    assert kept == sorted(kept) and kept[0] > 0.05 and kept[-1] < 1
    first, second = fit_cp(weight, 6, seed=3), fit_cp(weight, 6, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    components = torch.stack([factor.norm(dim=0) for factor in fit_cp(weight, 24, seed=3)]).prod(0)
    assert components.square().sum() < 10 * weight.square().sum()


@pytest.fixture
def candidate() -> Candidate:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3, stride=2, padding=1)
    return find_candidates(nn.Sequential(layer), torch.zeros(1, 16, 9, 9), "cp")[0]["0"]


def test_choices_cost_what_the_layers_do_and_keep_at_least_what_fits_keep(candidate: Candidate) -> None:
    assert isinstance(candidate.layer, nn.Conv2d)
    choices = cp_choices(candidate)
    assert [choice.ranks[0] for choice in choices] == [8, 16, 24, 32, 40]  # 48 takes more than the whole
    for choice in choices:
        parts = factorize_cp(candidate.layer, *choice.ranks)
        assert count_cost(parts, (16, 9, 9)) == {"macs": choice.macs, "parameters": choice.parameters + 24}
        assert choice.energy >= kept_energy(candidate.layer.weight, fit_cp(candidate.layer.weight, *choice.ranks, 0))


def test_rank_by_energy_is_the_first_whose_fit_keeps_it(candidate: Candidate) -> None:
    choices = cp_choices(candidate)
    weight = candidate.layer.weight
    kept = {one.ranks: kept_energy(weight, fit_cp(weight, *one.ranks, 0)) for one in choices}
    for energy in (0.2, 0.35, 0.45):
        expected = next((one for one in choices if kept[one.ranks] >= energy), None)
        assert cp_by_energy(candidate, choices, energy, 0) == expected
    assert cp_by_energy(candidate, choices, 0.999, 0) is None


def test_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        factorize_cp(nn.Conv2d(8, 8, 3), 0)
