"""What a deployable model answers on the whole test set, on this machine."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.inference import check_signature, infer, open_session

BATCH = 256


@dataclass(frozen=True)
class Answers:
    """A model's answers to labelled rows.

    Attributes:
        logits: (n, classes).
        accuracy: fraction of rows whose largest logit is their label's.
        confusion: how many rows of each true class (first axis) were taken for each class (classes, classes).
    """

    logits: NDArray[np.float32]
    accuracy: float
    confusion: NDArray[np.int64]


def evaluate(
    path: Path, inputs: NDArray[np.float32], labels: NDArray[np.int64], *, classes: int, threads: int
) -> Answers:
    """Run an ONNX model over labelled rows.

    Args:
        path: ONNX file.
        inputs: preprocessed rows (n, ...).
        labels: index of each row's class (n,).
        classes: how many there are.
        threads: of the session.

    Raises:
        InputError: the model does not load, does not fit the data, fails, or answers with NaN.
    """
    session = open_session(path, threads)
    check_signature(session, path, inputs.shape[1:], classes)
    logits = np.concatenate([infer(session, path, inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)])
    if logits.shape[1] != classes:
        raise InputError(f"{path}: answers with {logits.shape[1]} classes; the data has {classes}")
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)
    return Answers(logits, float(np.trace(confusion) / len(labels)), confusion)


def agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Fraction of rows for which two models' logits (n, classes) name the same class."""
    return float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
