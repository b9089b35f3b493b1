"""How much each layer loses when it alone is quantized.

Source: Wu et al. (2020), "Integer Quantization for Deep Learning Inference", section 6.1, which ranks layers so; but by
noise in the logits, as accuracy on some hundred rows tells few layers apart.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlites.compression.quantization.scheme import Layer, Scheme
from mlites.export import answers

ROWS = 256  # enough for the noise, which every logit of every row shows
LARGEST_SQNR_DB = 200.0  # stands for answers that do not differ at all


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer alone costs.

    Attributes:
        layer: the layer.
        sqnr_db: power of the float model's logits over that of the error, in decibels.
        changed: fraction of rows given another class.
    """

    layer: Layer
    sqnr_db: float
    changed: float


def measure_sensitivity(
    scheme: Scheme, logits: NDArray[np.float32], inputs: NDArray[np.float32]
) -> tuple[Sensitivity, ...]:
    """Quantize each layer alone; the most sensitive comes first.

    Args:
        scheme: that quantizes them.
        logits: of the float model for the rows (n, classes).
        inputs: the rows (n, *input_shape), of which evenly spaced ones are used.
    """
    rows = np.unique(np.linspace(0, len(inputs) - 1, min(ROWS, len(inputs))).round().astype(np.int64))
    names = frozenset(layer.name for layer in scheme.layers)
    found = []
    for layer in scheme.layers:
        noisy = answers(scheme.build(names - {layer.name}), inputs[rows])
        changed = float((noisy.argmax(1) != logits[rows].argmax(1)).mean())
        found.append(Sensitivity(layer, sqnr_db(logits[rows], noisy), changed))
    return tuple(sorted(found, key=lambda one: one.sqnr_db))


def sqnr_db(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Signal to quantization noise of logits (n, classes), in decibels.

    >>> sqnr_db(np.full((1, 2), 10.0), np.full((1, 2), 11.0))
    20.0
    """
    signal, noise = np.square(reference, dtype=np.float64).sum(), np.square(found - reference, dtype=np.float64).sum()
    if noise == 0:
        return LARGEST_SQNR_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / noise), -LARGEST_SQNR_DB, LARGEST_SQNR_DB))
