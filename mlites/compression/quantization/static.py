"""Static INT8: weights are stored in 8 bits, activations take ranges that calibration found.

Source: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", in ONNX Runtime's QDQ form. Activations are uint8 and weights int8 (U8S8): with int8 activations, the
default of the library, the kernels for x86 are slower than FP32.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from mlites.inference import INPUT  # first, as it turns the runtime's telemetry off

from onnxruntime.quantization import (  # isort: skip
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
OPERATORS = [
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
]
ROWS_AT_A_TIME = 64


def quantize_static_int8(
    model: onnx.ModelProto,
    inputs: NDArray[np.float32],
    *,
    per_channel: bool = True,
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax",
) -> onnx.ModelProto:
    """Quantize a float model; equal inputs give equal bytes.

    Args:
        model: FP32, weights inside; left unchanged.
        inputs: training rows (n, *input_shape) that show the range of every activation.
        per_channel: one weight scale for each output channel.
        calibration: the whole range seen, the range of least information loss, or all but the outliers.
    """
    with tempfile.TemporaryDirectory() as work, quiet():
        quantized = Path(work, "quantized.onnx")
        quantize_static(
            preprocess(model, Path(work)),
            quantized,
            _Rows(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[calibration],
            calibration_providers=["CPUExecutionProvider"],
            extra_options={"CalibStridedMinMax": 1},  # one range of rows at a time, whatever the method
        )
        return onnx.load(quantized)


def preprocess(model: onnx.ModelProto, work: Path) -> Path:
    """Fuse and infer shapes, as quantization wants it; by way of a file, as the library empties a model in memory."""
    given, prepared = work / "given.onnx", work / "prepared.onnx"
    given.write_bytes(model.SerializeToString())
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    return prepared


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's advice, which recommends what is done here already, and its progress off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """Hands on the rows a few at a time, in ranges: the library forgets intermediate results after each range."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._pieces = np.split(inputs, range(ROWS_AT_A_TIME, len(inputs), ROWS_AT_A_TIME))
        self.set_range(0, len(self._pieces))

    def __len__(self) -> int:
        return len(self._pieces)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._waiting = iter(self._pieces[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        piece = next(self._waiting, None)
        return None if piece is None else {INPUT: piece}
