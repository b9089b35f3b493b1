"""Batch normalization over a batch that several workers share: the statistics of all its rows, on any device.

PyTorch's SyncBatchNorm runs on GPUs alone. With statistics of its own share, each worker would train as with a batch
that many times smaller.

Source: Ioffe & Szegedy (2015), "Batch Normalization"; Peng et al. (2018), "MegDet": statistics across devices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlites.training.workers import Workers


@contextmanager
def shared_statistics(module: nn.Module, workers: Workers) -> Iterator[None]:
    """While this lasts, batch normalization in training takes its statistics from the rows of all workers.

    Args:
        module: its `torch.nn.BatchNorm1d`, 2d and 3d layers are changed; a user's own kind of layer is not.
        workers: all must run the module at the same time.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]

    def forward(layer: _BatchNorm, rows: Tensor) -> Tensor:
        return _normalise(layer, rows, workers) if layer.training else type(layer).forward(layer, rows)

    for layer in layers:
        layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalise(layer: _BatchNorm, rows: Tensor, workers: Workers) -> Tensor:
    """Normalise rows (n, channels, ...) by mean and variance over all workers' rows; follow them, too."""
    channels = rows.shape[1]
    count = rows.numel() // channels
    with torch.no_grad():
        variance, mean = torch.var_mean(rows.float(), dim=_but_channels(rows), correction=0)
        moments = torch.cat([mean.double() * count, (variance.double() + mean.double() ** 2) * count])
        told = workers.sum_(torch.cat([moments, moments.new_tensor([count])]))
        total = float(told[-1])
        mean, square = torch.split(told[:-1] / total, channels)
        variance = (square - mean**2).clamp_min(0)  # in double precision, where this cancels little
        _follow_(layer, mean, variance * (total / (total - 1)))
        mean, variance = mean.float(), variance.float()
    weight, bias = layer.weight, layer.bias
    apply: Callable[..., Tensor] = _Shared.apply
    return apply(rows, weight, bias, mean, variance, layer.eps, total, workers)


def _follow_(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), momentum)


def _but_channels(rows: Tensor) -> list[int]:
    return [dimension for dimension in range(rows.dim()) if dimension != 1]


class _Shared(torch.autograd.Function):
    """Normalisation by statistics that depend on the rows of all workers, in both directions."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        total: float,
        workers: Workers,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, mean, torch.rsqrt(variance + eps))
        ctx.total, ctx.workers = total, workers
        return F.batch_norm(rows, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the sum of all workers' losses, as far as this worker's rows have a part in them."""
        rows, weight, mean, scale = ctx.saved_tensors
        gradient = gradients[0].float()
        channels = rows.shape[1]
        across = (1, channels, *[1] * (rows.dim() - 2))
        normalised = (rows.float() - mean.view(across)) * scale.view(across)
        dimensions = _but_channels(rows)
        bias_gradient = gradient.sum(dimensions)
        weight_gradient = (gradient * normalised).sum(dimensions)
        means = ctx.workers.sum_(torch.cat([bias_gradient, weight_gradient]).double()).div(ctx.total).float()
        centre, slope = (part.view(across) for part in torch.split(means, channels))
        factor = scale.view(across) if weight is None else (scale * weight.float()).view(across)
        back = ((gradient - centre - normalised * slope) * factor).to(rows.dtype)
        if weight is None:
            return back, None, None, None, None, None, None, None
        return back, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype), None, None, None, None, None
