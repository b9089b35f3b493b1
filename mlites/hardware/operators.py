"""Which operators cost most once ONNX Runtime has optimised a model, and what the profile shows could be spared."""

import json
import platform
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mlites.errors import InputError
from mlites.inference import explain

RUNS, WARM_UP = 30, 3
VECTOR = 8  # channels that the narrowest of today's vector kernels computes at once
CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "ConvInteger")
FLOAT_PRODUCTS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
INTEGER_PRODUCTS = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm", "MatMulIntegerToFloat")
ACTIVATIONS = ("Relu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Erf")


@dataclass(frozen=True)
class Operator:
    """One operator of the optimised model.

    Attributes:
        name: the runtime's, which keeps most of the file's own.
        op_type: its kind.
        share: of the time that all operators take, the calls between them left out.
        us: microseconds of one inference, median; the profiler counts whole ones.
        hint: what the profile shows could be spared, if anything.
    """

    name: str
    op_type: str
    share: float
    us: float
    hint: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profile_operators(
    path: Path, rows: NDArray[np.float32], *, threads: int, batch: int, top: int = 3
) -> list[Operator]:
    """Profile a model on the processor and name its costliest operators, the costliest first.

    Args:
        path: ONNX file with one float32 input; weights may lie beside it.
        rows: real inputs (n, ...), repeated or cut to fill the batch.
        threads: of the session.
        batch: rows in one inference.
        top: how many operators to name.

    Raises:
        InputError: ONNX Runtime refuses the model.
    """
    model = onnx.load(path)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # profile and optimised model meet by name
    with tempfile.TemporaryDirectory() as folder:
        times, kinds = _run(model, path, np.resize(rows, (batch, *rows.shape[1:])), threads, Path(folder))
        graph = _Graph(onnx.load(Path(folder) / "optimised.onnx").graph)
    total = sum(times.values())
    costliest = sorted(times, key=lambda name: (-times[name], name))[:top]
    return [
        Operator(name, kinds[name], times[name] / max(total, 1e-9), times[name], graph.hint(name)) for name in costliest
    ]


def _run(
    model: onnx.ModelProto, path: Path, rows: NDArray[np.float32], threads: int, folder: Path
) -> tuple[dict[str, float], dict[str, str]]:
    """Microseconds of one inference and kind, both by the operator's name; the optimised model stays in the folder."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: rows}
        for _ in range(WARM_UP + RUNS):
            session.run(None, feed)
    except Exception as error:  # the runtime's errors share no class of their own
        raise InputError(f"{path}: ONNX Runtime cannot profile it: {explain(error)}") from None
    found: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in json.loads(Path(session.end_profiling()).read_bytes()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            found[name].append(event["dur"])
            kinds[name] = event["args"]["op_name"]
    times = {}
    for name, durations in found.items():
        calls = max(1, len(durations) // (WARM_UP + RUNS))  # more than one in a loop
        times[name] = median(durations[WARM_UP * calls :]) * calls
    return times, kinds


class _Graph:
    """The optimised model, asked about the neighbours of an operator."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = {node.name: node for node in graph.node}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.users[name].append(node)

    def hint(self, name: str) -> str | None:
        """The first that is true; None for an operator within a loop or branch, too."""
        node = self.nodes.get(name)
        return next((said for rule in RULES if (said := rule(self, node))), None) if node is not None else None

    def before(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [self.makers[name] for name in node.input if name in self.makers]

    def after(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [user for name in node.output for user in self.users[name]]

    def shape(self, node: onnx.NodeProto, place: int) -> Sequence[int]:
        """Of a stored weight; empty if it is computed."""
        name = node.input[place] if place < len(node.input) else ""
        return self.weights[name].dims if name in self.weights else ()


def _not_fused(graph: _Graph, node: onnx.NodeProto) -> str | None:
    sources = [one for one in graph.before(node) if one.op_type == "DequantizeLinear"]
    if node.op_type in FLOAT_PRODUCTS and sources:
        return f"QDQ not fused here: DequantizeLinear + {node.op_type} in float"
    return None


def _dynamic(graph: _Graph, node: onnx.NodeProto) -> str | None:
    dynamic = any(one.op_type == "DynamicQuantizeLinear" for one in (node, *graph.before(node)))
    if dynamic or node.op_type in ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"):
        return "dynamic quantization: the activations' range is found anew in every call; static quantization knows it"
    return None


def _between_types(graph: _Graph, node: onnx.NodeProto) -> str | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    around = graph.before(node) if node.op_type == "QuantizeLinear" else graph.after(node)
    floats = sorted({one.op_type for one in around if one.op_type not in ("QuantizeLinear", "DequantizeLinear")})
    if not around:
        return None  # the ends of the model: what comes in and goes out is float
    return f"changes between float and INT8 for {', '.join(floats)}, which runs in float" if floats else None


def _layout(graph: _Graph, node: onnx.NodeProto) -> str | None:
    if node.op_type in ("ReorderInput", "ReorderOutput"):
        return "changes the layout between blocked and plain channels: the operator on its other side knows no blocks"
    if node.op_type == "Transpose":
        beside = {one.op_type for one in (*graph.before(node), *graph.after(node))}
        kind = next((kind for kind in INTEGER_PRODUCTS if kind in beside), None)
        return f"changes the layout for {kind} beside it" if kind else "moves values and computes nothing"
    return None


def _signed(graph: _Graph, node: onnx.NodeProto) -> str | None:
    place = {"QLinearConv": 2, "QLinearMatMul": 2, "QGemm": 2}.get(node.op_type)
    zero = graph.weights.get(node.input[place]) if place is not None else None
    if zero is not None and zero.data_type == TensorProto.INT8 and platform.machine() in ("x86_64", "AMD64"):
        return "signed INT8 activations: the INT8 kernels of x86 are made for unsigned ones"
    return None


def _depthwise(graph: _Graph, node: onnx.NodeProto) -> str | None:
    weight = graph.shape(node, 3 if node.op_type == "QLinearConv" else 1)
    if node.op_type not in CONVOLUTIONS or len(weight) < 3 or weight[1] != 1 or _groups(node) == 1:
        return None
    padding = _channels(graph, node)
    taps = prod(weight[2:])
    return f"depthwise: {taps} multiply-accumulates for each value read{f'; {padding}' if padding else ''}"


def _channels(graph: _Graph, node: onnx.NodeProto) -> str | None:
    weight = graph.shape(node, 3 if node.op_type == "QLinearConv" else 1)
    if node.op_type not in CONVOLUTIONS or len(weight) < 3:
        return None
    for one in graph.after(node):
        kept = next((attribute.i for attribute in one.attribute if attribute.name == "channels"), weight[0])
        if one.op_type == "ReorderOutput" and kept != weight[0]:
            return f"{kept} channels, not a multiple of {VECTOR}: {weight[0]} are computed"
    odd = [weight[0]] if weight[0] % VECTOR else []
    if _groups(node) == 1 and weight[1] % VECTOR and weight[1] > 4:  # pictures have up to four
        odd.insert(0, weight[1])
    if not odd:
        return None
    words = " to ".join(map(str, odd))
    return f"{words} channels, not a multiple of {VECTOR}: the vectors of its kernel run partly empty"


def _alone(graph: _Graph, node: onnx.NodeProto) -> str | None:
    """What the runtime often merges into the product before it."""
    if node.op_type not in (*ACTIVATIONS, "BatchNormalization"):
        return None
    source = next((one for one in graph.before(node) if one.op_type in FLOAT_PRODUCTS), None)
    return f"not merged into the {source.op_type} before it" if source is not None else None


def _groups(node: onnx.NodeProto) -> int:
    return next((int(helper.get_attribute_value(one)) for one in node.attribute if one.name == "group"), 1)


RULES: tuple[Callable[[_Graph, onnx.NodeProto], str | None], ...] = (
    _not_fused,
    _dynamic,
    _signed,
    _between_types,
    _layout,
    _depthwise,
    _channels,
    _alone,
)
