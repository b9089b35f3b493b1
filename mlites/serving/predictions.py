"""What a served model answered to the rows of one call."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlites.serving.channel import Channel


@dataclass(frozen=True)
class Predictions:
    """Answers to the rows of one call, all from one version.

    Attributes:
        model: as asked for.
        channel: whose version answered.
        version: its number in Triton.
        digest: of its release.
        classes: names, in the order of the probabilities.
        probabilities: (n, classes), float32.
        milliseconds: from the call to the last answer, retries included.
    """

    model: str
    channel: Channel
    version: int
    digest: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    milliseconds: float

    @property
    def labels(self) -> list[str]:
        """The most probable class of each row."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """For each row its most probable classes, with their probabilities."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.classes[index], float(row[index])) for index in indices]
            for row, indices in zip(self.probabilities, order, strict=True)
        ]
