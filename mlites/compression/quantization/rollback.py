"""Accuracy-aware rollback: layers return to float, the most sensitive first, until the drop is within a limit.

Source: NNCF's quantization with accuracy control (Kozlov et al., 2020) ranks layers and returns one at a time; here
bisection over the ranking takes the logarithm of as many evaluations, and the drop counts with its sampling error.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from mlites.compression.quantization.scheme import Layer, Scheme
from mlites.compression.quantization.sensitivity import measure_sensitivity
from mlites.export import answers

Z = 2.33  # one-sided 99%: 95% that the drop on a test set of the same size is within the limit too
TRIMS = 4  # layers that are tried in integers again after the bisection


@dataclass(frozen=True)
class Drop:
    """Loss of accuracy in percentage points.

    Attributes:
        points: on the rows seen; negative where accuracy rose.
        bound_points: what it is at most on rows not seen, with 99% confidence.
    """

    points: float
    bound_points: float


@dataclass(frozen=True)
class Rollback:
    """What rollback ends in.

    Attributes:
        model: within the limit; the float model itself where no quantized one is.
        kept: layers that stay in float.
        before: drop with every layer quantized.
        after: drop of the model.
        evaluations: of a whole model on all rows.
        sensitivity_evaluations: with one layer quantized, on some of the rows; 0 where no ranking was needed.
    """

    model: onnx.ModelProto
    kept: tuple[Layer, ...]
    before: Drop
    after: Drop
    evaluations: int
    sensitivity_evaluations: int


def roll_back(
    model: onnx.ModelProto,
    scheme: Scheme,
    logits: NDArray[np.float32],
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    limit_points: float,
) -> Rollback:
    """Quantize as many layers as the limit allows.

    Args:
        model: the float model.
        scheme: that quantizes it.
        logits: of the float model (n, classes).
        inputs: validation rows (n, *input_shape).
        labels: (n,).
        limit_points: on the drop's bound, in percentage points.
    """
    search = _Search(scheme, logits.argmax(1) == labels, inputs, labels)
    everything: frozenset[str] = frozenset()
    before = search.drop(everything)
    if before.bound_points <= limit_points:
        return Rollback(scheme.build(everything), (), before, before, search.evaluations, 0)
    ranking = [one.layer for one in measure_sensitivity(scheme, logits, inputs)]
    low, high = 0, len(ranking)  # so many layers in float: low exceeds the limit, high does not
    while high - low > 1:
        middle = (low + high) // 2
        within = search.drop(_names(ranking[:middle])).bound_points <= limit_points
        low, high = (low, middle) if within else (middle, high)
    kept = ranking[:high]
    if high < len(ranking):
        for layer in sorted(kept[:-1], key=lambda one: -one.weights)[:TRIMS]:
            fewer = [one for one in kept if one != layer]
            if search.drop(_names(fewer)).bound_points <= limit_points:
                kept = fewer
    if len(kept) == len(ranking):
        return Rollback(model, scheme.layers, before, Drop(0.0, 0.0), search.evaluations, len(ranking))
    names = _names(kept)
    order = tuple(layer for layer in scheme.layers if layer.name in names)
    return Rollback(scheme.build(names), order, before, search.drop(names), search.evaluations, len(ranking))


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Drop:
    """Drop between two models that answered the same rows, right or wrong (n,) each.

    Only the rows on which one is right and the other wrong count: their difference has the variance of a signed sum.
    One row more is counted in (Agresti & Min 2005), or rows without any such case would prove that there is none.

    >>> paired_drop(np.array([True] * 100), np.array([True] * 99 + [False])).points
    1.0
    """
    rows = len(before)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    deviation = math.sqrt(lost + gained + 1 - (lost - gained) ** 2 / rows)
    return Drop(100 * (lost - gained) / rows, 100 * (lost - gained + Z * deviation) / rows)


def smallest_limit_points(rows: int) -> float:
    """The least drop that so many rows can rule out: the bound where no answer changes.

    >>> round(smallest_limit_points(3000), 3)
    0.078
    """
    return 100 * Z / rows


class _Search:
    """Evaluates choices of layers, each once."""

    def __init__(
        self, scheme: Scheme, right: NDArray[np.bool_], inputs: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> None:
        self.scheme, self.right, self.inputs, self.labels = scheme, right, inputs, labels
        self.known: dict[frozenset[str], Drop] = {}

    @property
    def evaluations(self) -> int:
        return len(self.known)

    def drop(self, kept: frozenset[str]) -> Drop:
        if kept not in self.known:
            found = answers(self.scheme.build(kept), self.inputs).argmax(1) == self.labels
            self.known[kept] = paired_drop(self.right, found)
        return self.known[kept]


def _names(layers: list[Layer]) -> frozenset[str]:
    return frozenset(layer.name for layer in layers)
