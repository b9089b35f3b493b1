"""Ranks by energy, or by one budget of multiply-accumulates for the whole network.

Source: Zhang, Zou, He & Sun (2015), "Accelerating Very Deep Convolutional Networks for Classification and Detection",
section 2.4: the product over the layers of the energy each keeps is made as large as the budget allows, greedily.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH = 8  # channels that CPU kernels compute at once: a rank between two multiples costs as much as the upper one
LEAST_ENERGY = 1e-12


@dataclass(frozen=True)
class Choice:
    """One way to build a layer.

    Attributes:
        ranks: of the factorization; none for the layer as it is.
        macs: multiply-accumulates for one row.
        parameters: weights, without the bias.
        energy: fraction of the weight's squared norm that is kept.
    """

    ranks: tuple[int, ...]
    macs: int
    parameters: int
    energy: float


def rank_grid(limit: int) -> list[int]:
    """The ranks to choose from: multiples of 8, and the full rank; in layers below 16 channels every rank.

    >>> rank_grid(20), rank_grid(4)
    ([8, 16, 20], [1, 2, 3, 4])
    """
    return sorted({*range(WIDTH, limit, WIDTH), limit}) if limit >= 2 * WIDTH else list(range(1, limit + 1))


def that_save(choices: Sequence[Choice], whole: Choice) -> list[Choice]:
    """The choices with fewer multiply-accumulates and fewer parameters than the whole layer."""
    return [one for one in choices if one.macs < whole.macs and one.parameters < whole.parameters]


def by_energy(choices: Sequence[Choice], energy: float) -> Choice | None:
    """The cheapest choice that keeps this fraction of the energy, if there is one."""
    enough = [one for one in choices if one.energy >= energy]
    return min(enough, key=lambda one: (one.macs, -one.energy), default=None)


def by_budget(layers: Mapping[str, Sequence[Choice]], macs: float) -> dict[str, Choice]:
    """Spend a budget so that the product of the energies kept is large.

    Every layer starts at its cheapest choice; then, again and again, the step that raises the logarithm of the product
    most per multiply-accumulate is taken, as long as it fits.

    Args:
        layers: choices of each layer; the layer as it is must be one of them if it may stay whole.
        macs: multiply-accumulates for all these layers together.

    Returns:
        One choice a layer. No other choices with as many multiply-accumulates in all keep more, where every step taken
        was worth more than every step left.

    Raises:
        ValueError: even the cheapest choices are above the budget.
    """
    hulls = {name: _hull(choices) for name, choices in layers.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    spent = sum(one.macs for one in chosen.values())
    if spent > macs:
        raise ValueError(f"the cheapest choices take {spent} multiply-accumulates, the budget is {macs:g}")
    steps = [(-_slope(before, after), name, after) for name, hull in hulls.items() for before, after in pairwise(hull)]
    full: set[str] = set()
    for _, name, after in sorted(steps, key=lambda step: step[0]):
        extra = after.macs - chosen[name].macs
        if name in full or spent + extra > macs:
            full.add(name)
            continue
        chosen[name] = after
        spent += extra
    return chosen


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that no mixture of two others beats, cheapest first: along them steps are worth less and less."""
    hull: list[Choice] = []
    for one in sorted(choices, key=lambda choice: (choice.macs, -choice.energy)):
        if hull and one.energy <= hull[-1].energy:
            continue
        while len(hull) > 1 and _slope(hull[-1], one) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(one)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    gain = math.log(max(after.energy, LEAST_ENERGY)) - math.log(max(before.energy, LEAST_ENERGY))
    return gain / (after.macs - before.macs)
