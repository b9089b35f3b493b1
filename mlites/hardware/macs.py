"""Multiply-accumulates and bytes of an ONNX file, counted from what ONNX Runtime's profiler saw while it ran once.

Whoever made the file, whatever its precision: what a file says it costs is read from the file alone. Loops are counted
as often as they went round, and of the branches of a condition the one that was taken.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.inference import explain

Shape = Sequence[int]

VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))  # name the same bytes anew
CONTROL = frozenset(("If", "Loop", "Scan"))  # what they run is seen by itself
INTEGER = frozenset(
    (
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    )
)
NOT_COUNTED = frozenset(
    (
        "DecoderMaskedMultiHeadAttention",
        "DeformConv",
        "Einsum",
        "GroupQueryAttention",
        "MoE",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "QAttention",
        "QMoE",
        "SparseAttention",
    )
)


@dataclass(frozen=True)
class Work:
    """What one inference takes.

    Attributes:
        macs: multiply-accumulates of convolutions, recurrent layers and matrix products, products of two activations
            included, as the file has them: what the runtime pads to is not counted.
        int8_macs: those of them that run in integer kernels after the runtime's optimisation.
        bytes: that the operators left after optimisation read and write, each its inputs, weights and results once.
        footprint_bytes: that one inference uses: all weights, and the values of the operator that has the largest.
        kernels: how many operators that is; those run in a loop count each time.
        not_counted: kinds of operators in the file whose products are not counted.
    """

    macs: int
    int8_macs: int
    bytes: int
    footprint_bytes: int
    kernels: int
    not_counted: tuple[str, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of the products: a multiplication and an addition each."""
        return 2 * self.macs


def count_work(model: onnx.ModelProto, rows: NDArray[np.float32]) -> Work:
    """Count one inference.

    Args:
        model: one float32 input; weights within.
        rows: the inputs of this inference (batch, ...).

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    plain, optimised = (run_profiled(model, rows, optimised=each) for each in (False, True))
    foreign = {"Attention"} if _fused_attention(model) else set()
    found = {event.op_type for event in plain}
    return Work(
        macs=sum(_macs_of(event) for event in plain if event.op_type not in foreign),
        int8_macs=sum(_macs_of(event) for event in optimised if event.op_type in INTEGER),
        bytes=sum(
            event.value_bytes + event.weight_bytes for event in optimised if event.op_type not in VIEWS | CONTROL
        ),
        footprint_bytes=_footprint([event for event in optimised if event.op_type not in CONTROL]),
        kernels=sum(event.op_type not in CONTROL for event in optimised),
        not_counted=tuple(sorted(found & (NOT_COUNTED | foreign))),
    )


def count_macs(model: onnx.ModelProto, row: NDArray[np.float32]) -> int:
    """Multiply-accumulates of one inference, as `Work` has them.

    Args:
        model: one float32 input and an open batch; weights within.
        row: one input (1, ...).

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    foreign = {"Attention"} if _fused_attention(model) else set()
    return sum(_macs_of(event) for event in run_profiled(model, row, optimised=False) if event.op_type not in foreign)


@dataclass(frozen=True)
class Event:
    """One operator that ran.

    Attributes:
        op_type: its kind.
        inputs: their shapes, weights among them.
        outputs: their shapes.
        value_bytes: of these, without weights.
        weight_bytes: of the weights.
    """

    op_type: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    value_bytes: int
    weight_bytes: int


def run_profiled(model: onnx.ModelProto, rows: NDArray[np.float32], *, optimised: bool) -> list[Event]:
    """Every operator of one inference, in order, those in loops and branches too.

    Args:
        model: one float32 input.
        rows: the inputs.
        optimised: as the runtime rewrites the model, or as it stands in the file.
    """
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            session.run(None, {session.get_inputs()[0].name: rows})
        except Exception as error:  # the runtime's errors share no class of their own
            raise InputError(f"the multiply-accumulates of the model cannot be counted: {explain(error)}") from None
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return [_event(one["args"]) for one in events if one.get("cat") == "Node" and "output_type_shape" in one["args"]]


def _event(seen: dict[str, Any]) -> Event:
    inputs, outputs = (
        tuple(tuple(shape) for typed in seen[key] for shape in typed.values())
        for key in ("input_type_shape", "output_type_shape")
    )
    values = int(seen["activation_size"]) + int(seen["output_size"])
    return Event(seen["op_name"], inputs, outputs, values, int(seen["parameter_size"]))


def _footprint(events: Sequence[Event]) -> int:
    return sum(event.weight_bytes for event in events) + max((event.value_bytes for event in events), default=0)


def _convolution(weight: int) -> Callable[[Event], int]:
    """The weight, at this place among the inputs, is (out, in / groups, ...)."""
    return lambda event: prod(event.outputs[0]) * prod(event.inputs[weight][1:])


def _product(weight: int) -> Callable[[Event], int]:
    """Each element of the result sums over the inner edge, on whichever side of the data it lies."""

    def count(event: Event) -> int:
        data, other, result = event.inputs[0], event.inputs[weight], event.outputs[0]
        if len(data) == 1:
            inner = data[0]
        elif len(other) == 1:
            inner = other[0]
        else:
            inner = data[-1] * data[-2] // max(1, result[-2])
        return prod(result) * inner

    return count


def _recurrent(event: Event) -> int:
    """Every step of every row meets all weights of both kinds once."""
    data, own, recurrent = event.inputs[:3]
    return prod(data[:2]) * (prod(own) + prod(recurrent))


def _attention(event: Event) -> int:
    """Queries with keys, then weights with values; all heads together, whichever way they are laid out."""
    keys = event.inputs[1][-2] + (event.inputs[4][-2] if len(event.inputs) > 4 else 0)
    return (prod(event.inputs[0]) + prod(event.outputs[0])) * keys


FORMULAS: dict[str, Callable[[Event], int]] = {
    "Attention": _attention,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": lambda event: prod(event.inputs[0]) * prod(event.inputs[1][1:]),
    "DynamicQuantizeLSTM": _recurrent,
    "DynamicQuantizeMatMul": _product(1),
    "FusedConv": _convolution(1),
    "FusedGemm": _product(1),
    "FusedMatMul": _product(1),
    "GRU": _recurrent,
    "Gemm": _product(1),
    "LSTM": _recurrent,
    "MatMul": _product(1),
    "MatMulInteger": _product(1),
    "MatMulIntegerToFloat": _product(1),
    "MatMulNBits": _product(1),
    "QGemm": _product(3),
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _product(3),
    "RNN": _recurrent,
}


def _macs_of(event: Event) -> int:
    return FORMULAS[event.op_type](event) if event.op_type in FORMULAS else 0


def _fused_attention(model: onnx.ModelProto) -> bool:
    """Whether the file holds ONNX Runtime's own Attention, which projects as well, under the name that ONNX uses."""
    return any(node.op_type == "Attention" and node.domain == "com.microsoft" for node in model.graph.node)
