"""Statistics shared by workers are those of the whole batch, and so are the gradients through them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlites.training.shared_norm import shared_statistics
from mlites.training.workers import Workers
from tests.training.in_threads import together

SHAPES: dict[type[_BatchNorm], tuple[int, ...]] = {
    nn.BatchNorm1d: (11, 3),
    nn.BatchNorm2d: (11, 3, 4, 2),
    nn.BatchNorm3d: (11, 3, 2, 2, 2),
}


def rows_of(kind: type[_BatchNorm]) -> Tensor:
    rows = torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(0)) * 3
    return rows + torch.tensor([0.0, 50.0, -2.0]).view(1, 3, *[1] * (rows.dim() - 2))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_three_workers_normalise_as_one_does(kind: type[_BatchNorm], options: dict[str, Any]) -> None:
    rows, alone = rows_of(kind), nn.Sequential(kind(3, **options))
    if options.get("affine", True):
        nn.init.normal_(alone[0].weight, 1.0)
    layer = copy.deepcopy(alone)
    target = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    whole = rows.clone().requires_grad_()
    expected = alone(whole)
    (expected * target).sum().backward()

    def work(workers: Workers) -> tuple[Tensor, Tensor, nn.Module]:
        own = workers.share(torch.arange(len(rows)))
        mine, part = copy.deepcopy(layer), rows[own].clone().requires_grad_()
        with shared_statistics(mine, workers):
            found = mine(part)
            (found * target[own]).sum().backward()
        assert part.grad is not None and "forward" not in vars(mine[0])
        return found.detach(), part.grad, mine

    results = together(3, work)
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([found for found, _, _ in results]), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([back for _, back, _ in results]), whole.grad, rtol=1e-4, atol=1e-5)
    for _, _, mine in results:
        for name, state in alone.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], state, rtol=1e-5, atol=1e-6)
    for name, parameter in alone.named_parameters():
        summed = torch.stack([torch.as_tensor(mine.get_parameter(name).grad) for _, _, mine in results]).sum(0)
        torch.testing.assert_close(summed, parameter.grad, rtol=1e-4, atol=1e-4)


def test_layers_in_evaluation_keep_their_statistics_and_speak_to_nobody() -> None:
    layer, rows = nn.BatchNorm1d(3).eval(), rows_of(nn.BatchNorm1d)
    (first, _) = together(2, lambda workers: _alone(layer, rows, workers))
    assert torch.equal(first, layer(rows)) and float(layer.num_batches_tracked or 0) == 0


def _alone(layer: nn.Module, rows: Tensor, workers: Workers) -> Tensor:
    if workers.rank:
        return rows  # takes no part
    with shared_statistics(layer, workers):
        return layer(rows).detach()  # type: ignore[no-any-return]
