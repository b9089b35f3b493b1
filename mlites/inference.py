"""ONNX Runtime sessions that measure alike, and one clear line for every ONNX file that cannot be used."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from mlites.errors import InputError

INPUT, OUTPUT = "input", "logits"


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Load a model for the CPU: one operator at a time on ``threads`` threads.

    Threads spin while a call runs and rest between calls, or one session's threads would slow the next session's.

    Raises:
        InputError: ONNX Runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what is wrong comes as an exception; the log would repeat it
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no class of their own
        raise InputError(f"{path}: ONNX Runtime cannot load it: {explain(error)}") from None


def check_file(path: Path) -> None:
    """Refuse what is not ONNX, and ONNX that keeps weights in other files: only ``model.onnx`` is served.

    Raises:
        InputError: with the file and the reason.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"{path}: cannot read the model: {error.strerror}") from None
    except Exception:  # protobuf's, whose module has no types
        raise InputError(f"{path}: not an ONNX file, or cut short; export the model again") from None
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise InputError(
                f"{path}: weight {tensor.name[:80]!r} lies in another file ({location[:80]}); "
                "save the model with all weights inside model.onnx"
            )


def check_signature(session: ort.InferenceSession, path: Path, input_shape: tuple[int, ...], classes: int) -> None:
    """Refuse a model whose input and output are not those of the data.

    Args:
        session: the loaded model.
        path: its file, for the message.
        input_shape: of one input, without the batch.
        classes: how many the data has.

    Raises:
        InputError: with what was found and what would be right.
    """
    expected = f"one float32 input 'input' [batch, {', '.join(map(str, input_shape))}]"
    inputs = session.get_inputs()
    names = ", ".join(one.name for one in inputs)
    if [one.name for one in inputs] != [INPUT]:
        raise InputError(f"{path}: inputs are {names[:80] or 'none'}; the data needs {expected}")
    found = inputs[0]
    if found.type != "tensor(float)":
        raise InputError(f"{path}: input is {found.type}; the data needs {expected}")
    if not _fits(found.shape, (None, *input_shape)):
        raise InputError(f"{path}: input has shape {_show(found.shape)}; the data needs {expected}, batch left open")
    outputs = {one.name: one for one in session.get_outputs()}
    expected = f"float32 output 'logits' [batch, {classes}], one column for each class"
    if OUTPUT not in outputs:
        raise InputError(f"{path}: outputs are {', '.join(outputs)[:80]}; the data needs {expected}")
    found = outputs[OUTPUT]
    if found.type != "tensor(float)" or not _fits(found.shape, (None, classes)):
        raise InputError(f"{path}: output logits is {found.type} {_show(found.shape)}; the data needs {expected}")


def infer(session: ort.InferenceSession, path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (n, classes) for inputs (n, ...).

    Raises:
        InputError: the model fails, or answers with NaN or infinity.
    """
    try:
        (logits,) = session.run([OUTPUT], {INPUT: inputs})
    except Exception as error:
        raise InputError(f"{path}: ONNX Runtime cannot run it on {len(inputs)} rows: {explain(error)}") from None
    if logits.ndim != 2 or len(logits) != len(inputs):
        raise InputError(
            f"{path}: answers {len(inputs)} rows with logits of shape {logits.shape}; one line a row is right"
        )
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: answers with NaN or infinity for {_rows_not_finite(logits)} of {len(inputs)} rows")
    return np.asarray(logits, np.float32)


def explain(error: Exception | str) -> str:
    """The runtime's message as one short line, without its own prefixes."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"^Load model from .* failed:", "", text)
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 240 else f"{line[:237]}..."


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the model, in nested graphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                graphs.extend((attribute.g, *attribute.graphs))


def _fits(found: list[Any], wanted: tuple[int | None, ...]) -> bool:
    """Named dimensions and unknown ones fit every size; the batch, wanted as None, must be one of these."""
    if not found:  # the model states no shape: running it will tell
        return True
    if len(found) != len(wanted):
        return False
    return all(not isinstance(one, int) or one == size for one, size in zip(found, wanted, strict=True))


def _show(shape: list[Any]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _rows_not_finite(logits: NDArray[np.float32]) -> int:
    return int((~np.isfinite(logits).all(axis=1)).sum())
