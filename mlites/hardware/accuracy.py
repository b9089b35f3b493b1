"""What a deployable model answers on the whole test set, on this machine.

Source: Guo et al. (2017), "On Calibration of Modern Neural Networks": the expected calibration error.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.hardware.paired import Drop
from mlites.inference import check_signature, infer, open_session
from mlites.recipe import Hardware

BATCH = 256
BINS = 15  # of equal width, as in the source


@dataclass(frozen=True)
class Answers:
    """A model's answers to labelled rows.

    Attributes:
        logits: (n, classes).
        labels: index of each row's class (n,).
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether each row's largest logit is its label's (n,)."""
        found: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return found

    @property
    def accuracy(self) -> float:
        """Fraction of rows answered rightly."""
        return float(self.right.mean())

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """How many rows of each true class (first axis) were taken for each class (classes, classes)."""
        counts = np.zeros((self.logits.shape[1],) * 2, np.int64)
        np.add.at(counts, (self.labels, self.logits.argmax(axis=1)), 1)
        return counts

    @property
    def per_class(self) -> list[float | None]:
        """Recall of each class: the fraction of its rows answered rightly, None for a class without rows."""
        rows = self.confusion.sum(axis=1)
        return [float(hit / n) if n else None for hit, n in zip(np.diag(self.confusion), rows, strict=True)]

    @cached_property
    def calibration(self) -> list["Bin"]:
        """Confidence against accuracy in `BINS` bins of equal width; bins without rows are left out."""
        confidence = softmax(self.logits).max(axis=1)
        index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)  # (0, 1/15], (1/15, 2/15], ...
        rows = np.bincount(index, minlength=BINS)
        sums = [np.bincount(index, weights=values, minlength=BINS) for values in (confidence, self.right)]
        return [
            Bin(int(n), float(certain / n), float(right / n))
            for n, certain, right in zip(rows, *sums, strict=True)
            if n
        ]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy, bins weighted by their rows."""
        gaps = sum(one.rows * abs(one.confidence - one.accuracy) for one in self.calibration)
        return gaps / len(self.labels)


@dataclass(frozen=True)
class Bin:
    """Rows of about the same confidence.

    Attributes:
        rows: how many.
        confidence: mean probability of the class answered.
        accuracy: fraction answered rightly.
    """

    rows: int
    confidence: float
    accuracy: float


def evaluate(
    path: Path, inputs: NDArray[np.float32], labels: NDArray[np.int64], hardware: Hardware, *, classes: int
) -> Answers:
    """Run an ONNX model over labelled rows.

    Args:
        path: ONNX file.
        inputs: preprocessed rows (n, ...).
        labels: index of each row's class (n,).
        hardware: threads and provider of the session.
        classes: how many there are.

    Raises:
        InputError: the model does not load, does not fit the data, fails, or answers with NaN.
    """
    session = open_session(path, hardware.threads, hardware.provider, hardware.provider_options)
    check_signature(session, path, inputs.shape[1:], classes)
    logits = np.concatenate([infer(session, path, inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)])
    if logits.shape[1] != classes:
        raise InputError(f"{path}: answers with {logits.shape[1]} classes; the data has {classes}")
    return Answers(logits, labels)


def agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Fraction of rows for which two models' logits (n, classes) name the same class."""
    return float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())


def drop(own: Answers, reference: Answers) -> Drop:
    """What a model loses against another on all rows."""
    return _drop(own, reference, np.ones(len(own.labels), np.bool_))


def class_drops(own: Answers, reference: Answers) -> list[Drop | None]:
    """The same for the rows of each class, None for a class without rows."""
    members = [own.labels == index for index in range(own.logits.shape[1])]
    return [_drop(own, reference, rows) if rows.any() else None for rows in members]


def _drop(own: Answers, reference: Answers, rows: NDArray[np.bool_]) -> Drop:
    lost, won = reference.right & ~own.right & rows, own.right & ~reference.right & rows
    return Drop(int(rows.sum()), int(lost.sum()), int(won.sum()))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits (n, classes)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
