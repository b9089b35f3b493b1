"""Ask a served version what its ONNX file answers, over HTTP and gRPC, alone and in a batch, and compare."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlites.serving.server import Triton

# Of the largest expected logit, or of 1 where all are smaller. Another batch size or thread count adds in another
# order; where INT8 rounds after that, one step more or less is right. Another model differs by far more.
TOLERANCE = 0.01
SINGLE_ROWS = 4  # sent one by one, beside the batch of all


class WrongAnswers(Exception):
    """The served version does not answer what the ONNX file answers."""


@dataclass(frozen=True)
class Comparison:
    """How near the served answers are, over all protocols and requests.

    Attributes:
        samples: golden inputs asked.
        max_abs_difference: largest difference of two logits.
        agreement: fraction of rows with the same class.
    """

    samples: int
    max_abs_difference: float
    agreement: float


def smoke_test(
    triton: Triton,
    model: str,
    version: int,
    golden: NDArray[np.float32],
    expected: NDArray[np.float32],
    max_batch_size: int,
) -> Comparison:
    """Compare the answers of a version, asked for by number, with what is expected.

    Args:
        triton: the server.
        model: its name there.
        version: its number.
        golden: inputs (n, ...), at least one.
        expected: logits (n, classes) of ONNX Runtime.
        max_batch_size: largest request the model takes.

    Raises:
        WrongAnswers: shape, logits (by more than `TOLERANCE`) or classes differ.
        TritonRefused: no answer.
    """
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    largest, same, asked = 0.0, 0, 0
    for protocol, infer in (("HTTP", triton.infer_http), ("gRPC", triton.infer_grpc)):
        for rows in _requests(len(golden), max_batch_size):
            logits = infer(model, version, np.ascontiguousarray(golden[rows]))
            wanted = expected[rows]
            place = f"{model} version {version} over {protocol}"
            if logits.shape != wanted.shape:
                raise WrongAnswers(f"{place} answers with shape {logits.shape}, the ONNX file with {wanted.shape}")
            difference = float(np.abs(logits - wanted).max())
            if not difference <= tolerance:  # so that NaN fails
                raise WrongAnswers(
                    f"{place} differs from the ONNX file by {difference:.3g}; at most {tolerance:.3g} is right"
                )
            agrees = logits.argmax(1) == wanted.argmax(1)
            top = np.sort(wanted, 1)[:, -2:]
            clear = top[:, 1] - top[:, 0] > 2 * tolerance
            if not agrees[clear].all():
                raise WrongAnswers(
                    f"{place} names another class for {int((~agrees[clear]).sum())} of {len(wanted)} rows"
                )
            largest, same, asked = max(largest, difference), same + int(agrees.sum()), asked + len(wanted)
    return Comparison(len(golden), largest, same / asked)


def _requests(count: int, max_batch_size: int) -> list[slice]:
    """Single rows first, then all rows in the largest batches allowed."""
    singles = [slice(row, row + 1) for row in range(min(SINGLE_ROWS, count))]
    return singles + [slice(start, start + max_batch_size) for start in range(0, count, max_batch_size)]
