"""From logits to probabilities, as the client and the reference of the server's ensemble compute them."""

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (n, classes) of logits (n, classes).

    >>> softmax(np.array([[0, np.log(3)]], np.float32)).round(6).tolist()
    [[0.25, 0.75]]
    """
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
