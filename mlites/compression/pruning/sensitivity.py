"""Sensitivity analysis: each layer is pruned alone, and those that cost more accuracy get lower rates.

Source: Han, Pool, Tran & Dally (2015), "Learning both Weights and Connections"; Li, Kadav, Durdanovic, Samet & Graf
(2017), "Pruning Filters for Efficient ConvNets", section 4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, nn

from mlites.training.loop import TrainingData, evaluate

ROWS = 1024  # validation rows looked at, at most
STEPS = 60  # halvings of the interval in which the common drop lies


@dataclass(frozen=True)
class Sensitivity:
    """What pruning each layer alone costs.

    Attributes:
        probed: rates tried, ascending.
        drops: layer -> loss of validation accuracy in points at each of these rates.
        rates: layer -> rate chosen.
        protected: layers pruned at less than half of the amount asked for.
    """

    probed: tuple[float, ...]
    drops: dict[str, tuple[float, ...]]
    rates: dict[str, float]
    protected: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A compact table for the model card."""
        layers = {
            name: {"rate": round(self.rates[name], 4), "drops_points": [round(drop, 2) for drop in drops]}
            for name, drops in self.drops.items()
        }
        return {"probed_rates": list(self.probed), "layers": layers, "protected": list(self.protected)}


def analyse(
    module: nn.Module,
    data: TrainingData,
    amount: float,
    sizes: Mapping[str, int],
    prune_one: Callable[[str, float], nn.Module],
    seed: int,
) -> Sensitivity:
    """Measure each layer at four rates around ``amount``, and choose rates that reach it at one predicted drop for all.

    Args:
        module: before pruning.
        data: whose validation rows decide; more than 1,024 are sampled.
        amount: fraction to remove of all layers together, in (0, 1).
        sizes: layer -> what its rate is a fraction of: its weights, or its channels.
        prune_one: (layer, rate) -> the network with this layer alone pruned.
        seed: of the sample.
    """
    count = len(data.validation_labels)
    rows = torch.randperm(count, generator=Generator().manual_seed(seed))[:ROWS]
    inputs, labels = data.validation_inputs[rows], data.validation_labels[rows]
    base, _ = evaluate(module, inputs, labels)
    probed = tuple(round(rate, 4) for rate in (amount / 2, amount, 1 - (1 - amount) / 2, 1 - (1 - amount) / 4))
    drops = {
        name: tuple(100 * (base - evaluate(prune_one(name, rate), inputs, labels)[0]) for rate in probed)
        for name in sizes
    }
    rates = equalise(probed, drops, sizes, amount)
    return Sensitivity(probed, drops, rates, tuple(name for name, rate in rates.items() if rate < amount / 2))


def equalise(
    probed: Sequence[float], drops: Mapping[str, Sequence[float]], sizes: Mapping[str, int], amount: float
) -> dict[str, float]:
    """Rates at which every layer is predicted to cost the same, and which remove ``amount`` of all in total.

    Between the rates tried a drop is interpolated; beyond the highest no layer is pruned.

    >>> rates = equalise((0.5, 0.9), {"robust": (0.0, 2.0), "frail": (10.0, 60.0)}, {"robust": 100, "frail": 100}, 0.5)
    >>> {name: round(rate, 3) for name, rate in rates.items()}
    {'robust': 0.9, 'frail': 0.1}
    """
    curves = {name: _rising(probed, drop) for name, drop in drops.items()}
    wanted = amount * sum(sizes.values())

    def rates_at(level: float) -> dict[str, float]:
        return {name: _rate_at(curve, level) for name, curve in curves.items()}

    def total(rates: Mapping[str, float]) -> float:
        return sum(sizes[name] * rate for name, rate in rates.items())

    low, high = 0.0, max(drop for curve in curves.values() for _, drop in curve)
    if (free := total(rates_at(low))) >= wanted:  # more than enough costs nothing
        return {name: rate * wanted / free for name, rate in rates_at(low).items()}
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(rates_at(middle)) < wanted else (low, middle)
    below, above = rates_at(low), rates_at(high)  # apart where a layer loses nothing over a range of rates
    share = (wanted - total(below)) / max(total(above) - total(below), 1e-12)
    return {name: rate + min(max(share, 0.0), 1.0) * (above[name] - rate) for name, rate in below.items()}


def _rising(probed: Sequence[float], drops: Sequence[float]) -> list[tuple[float, float]]:
    """Points (rate, drop) from (0, 0) on; a drop that seems to shrink at a higher rate is chance."""
    points = [(0.0, 0.0)]
    for rate, drop in zip(probed, drops, strict=True):
        points.append((rate, max(points[-1][1], drop)))
    return points


def _rate_at(points: list[tuple[float, float]], level: float) -> float:
    """The highest rate whose drop is at most ``level``."""
    found = 0.0
    for (rate, drop), (next_rate, next_drop) in pairwise(points):
        if next_drop <= level:
            found = next_rate
        else:
            return rate + (next_rate - rate) * (level - drop) / (next_drop - drop)
    return found
