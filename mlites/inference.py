"""ONNX Runtime sessions that measure alike, and one clear line for every ONNX file that cannot be used."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.onnx_file import read_model

INPUT, OUTPUT = "input", "logits"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INFER_ONCE = Path(__file__).with_name("infer_once.py")
TRIAL_SECONDS = 120
MIB = 2**20
LEAST_MIB = 2048  # for the interpreter, ONNX Runtime and what a small model needs to infer
NO_MEMORY = r"bad_alloc|MemoryError|([Ff]ailed|[Cc]annot|[Uu]nable) to allocate|annot allocate|would require more"


def open_session(
    path: Path, threads: int, provider: str = "cpu", provider_options: Mapping[str, str] | None = None
) -> ort.InferenceSession:
    """Load a model: one operator at a time on ``threads`` threads.

    Threads spin while a call runs and rest between calls, or one session's threads would slow the next session's.

    Args:
        path: ONNX file.
        threads: of the session.
        provider: "cpu" or "cuda".
        provider_options: as ONNX Runtime names them.

    Raises:
        InputError: ONNX Runtime lacks the provider, or refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what is wrong comes as an exception; the log would repeat it
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=choose_providers(provider, provider_options))
    except InputError:
        raise
    except Exception as error:  # the runtime's errors share no class of their own
        raise InputError(f"{path}: ONNX Runtime cannot load it: {explain(error)}") from None


def choose_providers(provider: str, provider_options: Mapping[str, str] | None = None) -> list[Any]:
    """ONNX Runtime's own names for a provider; what CUDA lacks falls to the processor.

    Raises:
        InputError: this ONNX Runtime was built without it.
    """
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        found = ", ".join(ort.get_available_providers())
        raise InputError(f"hardware.provider is {provider}, but this ONNX Runtime has {found}; install onnxruntime-gpu")
    chosen = [(name, dict(provider_options or {}))]
    return chosen if provider == "cpu" else [*chosen, ("CPUExecutionProvider", {})]


def check_file(
    path: Path, rows: NDArray[np.float32] | None = None, *, alone: bool = True, memory_mib: float | None = None
) -> None:
    """Refuse what is not ONNX, what ONNX Runtime refuses, and what crashes it, hangs it or takes too much memory.

    What must be run to know is run in a process of its own, within a limit; this one reads no more than the file.

    Args:
        path: ONNX file.
        rows: real inputs (n, ...) for one inference; default: one row of zeros, where the model says what a row is.
        alone: all weights must lie within the file, since only ``model.onnx`` is served; else they may lie beside it.
        memory_mib: that the process may hold; default: 2 GiB and four times the model.

    Raises:
        InputError: with the file and the fault.
    """
    read_model(path, alone=alone)
    size = sum(one.stat().st_size for one in path.parent.iterdir() if one.is_file()) if not alone else 0
    limit = round((memory_mib or LEAST_MIB) * MIB) + (0 if memory_mib else 4 * max(size, path.stat().st_size))
    inputs = None if rows is None else np.ascontiguousarray(rows, np.float32)
    # -P: a module of this folder must not hide one of the standard library
    shape = json.dumps(None if inputs is None else inputs.shape)
    command = [sys.executable, "-P", str(INFER_ONCE), str(path), str(limit), shape]
    content = b"" if inputs is None else inputs.tobytes()
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=TRIAL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: loading it and one inference take more than {TRIAL_SECONDS} s") from None
    said = json.loads(done.stdout) if done.stdout.strip() else {}
    words = f"{said.get('error', '')} {done.stderr.decode(errors='replace')}"
    if re.search(NO_MEMORY, words):
        raise InputError(f"{path}: needs more than {limit >> 20} MiB of memory for one inference")
    if done.returncode < 0:
        raise InputError(f"{path}: ONNX Runtime dies of {signal.Signals(-done.returncode).name} on this file")
    if done.returncode:
        raise InputError(f"{path}: it cannot be tried: {explain(words.strip().splitlines()[-1])}")
    if said.get("stage") == "load":
        raise InputError(f"{path}: ONNX Runtime cannot load it: {explain(said['error'])}")


@dataclass(frozen=True)
class Signature:
    """What a model with one float32 input reads and answers with.

    Attributes:
        input: name.
        input_shape: batch first; None where every size fits.
        output: name of the output called ``logits``, or else of the first.
        output_shape: the same of the output; empty where the model does not state it.
    """

    input: str
    input_shape: tuple[int | None, ...]
    output: str
    output_shape: tuple[int | None, ...]

    @property
    def batch(self) -> int | None:
        """Rows that every inference takes; None if it takes any number."""
        return self.input_shape[0] if self.input_shape else None


def read_signature(session: ort.InferenceSession, path: Path) -> Signature:
    """Names and shapes of any model that takes one float32 input, whoever made it.

    Raises:
        InputError: several inputs, none, or one of another type.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)[:80]
        raise InputError(f"{path}: takes {len(inputs)} inputs ({names or 'none'}); one float32 input can be measured")
    if inputs[0].type != "tensor(float)":
        raise InputError(f"{path}: input {inputs[0].name[:80]!r} is {inputs[0].type}; float32 can be measured")
    answer = next((one for one in outputs if one.name == OUTPUT), outputs[0])
    if answer.type != "tensor(float)":
        raise InputError(f"{path}: output {answer.name[:80]!r} is {answer.type}; float32 can be measured")
    return Signature(inputs[0].name, _edges(inputs[0].shape), answer.name, _edges(answer.shape))


def _edges(shape: Sequence[int | str | None]) -> tuple[int | None, ...]:
    return tuple(edge if isinstance(edge, int) else None for edge in shape)


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
    """Logits (n, classes) for inputs (n, ...), in pieces where the model takes a fixed number of rows.

    Raises:
        InputError: the model fails, or answers with NaN or infinity.
    """
    signature = read_signature(session, path)
    batch = signature.batch or len(inputs)
    pieces = [inputs[at : at + batch] for at in range(0, len(inputs), batch)]
    logits = np.concatenate([_infer_piece(session, path, signature, piece, batch) for piece in pieces])
    if not np.isfinite(logits).all():
        raise InputError(f"{path}: answers with NaN or infinity for {_rows_not_finite(logits)} of {len(inputs)} rows")
    return logits


def _infer_piece(
    session: ort.InferenceSession, path: Path, signature: Signature, piece: NDArray[np.float32], batch: int
) -> NDArray[np.float32]:
    rows = piece if len(piece) == batch else np.resize(piece, (batch, *piece.shape[1:]))
    try:
        (logits,) = session.run([signature.output], {signature.input: rows})
    except Exception as error:
        raise InputError(f"{path}: ONNX Runtime cannot run it on {batch} rows: {explain(error)}") from None
    if logits.ndim != 2 or len(logits) != batch:
        raise InputError(f"{path}: answers {batch} rows with logits of shape {logits.shape}; one line a row is right")
    return np.asarray(logits[: len(piece)], np.float32)


def explain(error: Exception | str) -> str:
    """The runtime's message as one short line, without its own prefixes."""
    text = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error), flags=re.DOTALL)
    text = re.sub(r"^Load model from .* failed: ?", "", text)
    text = re.sub(r"^(Exception during initialization: )?/\S+\.(?:cc|h):\d+ .*?\) (?:const )?(?=[A-Z\[])", "", text)
    text = re.sub(r"^ONNX Runtime only \*guarantees\*.*? versions\. ", "", text)
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 240 else f"{line[:237]}..."


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
