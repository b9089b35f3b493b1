"""Sixteen bits for each weight: FP16, or BF16 where the runtime computes in it.

Source: Micikevicius et al. (2018), "Mixed Precision Training", for FP16 beside FP32. Where the runtime has kernels for
the type, layers compute in it. Where it has none for FP16, as on x86 processors, weights are stored in 16 bits and
widened once, when the model is loaded: half the size at the speed of FP32. (Given FP16 layers there, ONNX Runtime puts
casts around each, and is slower than in FP32.)
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper, version_converter

from mlites.compression.quantization.scheme import Layer, Scheme, find_layers, prepare
from mlites.errors import InputError

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALLEST = 64  # numbers in a constant for which 16 bits outweigh the node that widens it
BF16_OPSET = 22  # the first whose Conv takes it


def fp16(model: onnx.ModelProto) -> Scheme:
    """Store a model's weights in FP16, and compute in it where the runtime can.

    Raises:
        InputError: the model has no weight worth it, or one beyond FP16's range.
    """
    prepared = prepare(model)
    computing = find_layers(prepared, OPERATORS)
    if computing and not missing_kernels(TensorProto.FLOAT16, _operators(prepared)):
        return compute_in(prepared, TensorProto.FLOAT16, computing)
    return store_in_fp16(prepared)


def bf16(model: onnx.ModelProto) -> Scheme:
    """Compute in BF16.

    Raises:
        InputError: this runtime has no kernels for it, or the model has no layer that would use them.
    """
    prepared = prepare(model)
    layers = find_layers(prepared, OPERATORS)
    if not layers:
        raise InputError("bf16 needs a convolution or a matrix product and this model has none")
    if missing := missing_kernels(TensorProto.BFLOAT16, _operators(prepared)):
        raise InputError(
            f"bf16: ONNX Runtime {ort.__version__} has no bfloat16 {' and '.join(missing)} for this processor; "
            "use method: fp16, which is as small"
        )
    return compute_in(prepared, TensorProto.BFLOAT16, layers)


def missing_kernels(kind: int, operators: Iterable[str]) -> list[str]:
    """Those of the operators that the runtime does not compute in a type of 16 bits, found by trying each.

    >>> missing_kernels(TensorProto.FLOAT, ["Conv", "MatMul"])
    []
    """
    return [operator for operator in operators if not _has_kernel(kind, operator)]


def store_in_fp16(prepared: onnx.ModelProto) -> Scheme:
    """Constants lie in 16 bits, each read through a Cast that the runtime computes once, when it loads the model."""
    large = {
        one.name: one
        for one in prepared.graph.initializer
        if one.data_type == TensorProto.FLOAT and int(np.prod(one.dims)) >= SMALLEST
    }
    reading = [node for node in prepared.graph.node if any(name in large for name in node.input)]
    if not reading:
        raise InputError(f"fp16: this model has no weight of {SMALLEST} numbers or more, so nothing would be saved")
    names = {node.name for node in reading}
    layers = tuple(one for one in find_layers(prepared, {node.op_type for node in reading}) if one.name in names)
    for layer, node in zip(layers, reading, strict=True):
        for name in set(node.input).intersection(large):
            _check_range(large[name], layer)

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(prepared)
        whole = {name for node in reading if node.name in kept for name in node.input}
        casts = []
        for one in model.graph.initializer:
            if one.name in large and one.name not in whole:
                name = one.name
                one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), f"{name}_fp16"))
                casts.append(helper.make_node("Cast", [one.name], [name], f"{name}_widen", to=TensorProto.FLOAT))
        _replace_nodes_(model, [*casts, *model.graph.node])
        return model

    return Scheme(layers, build, {"computes_in": "float32"})


def compute_in(prepared: onnx.ModelProto, kind: int, layers: Sequence[Layer]) -> Scheme:
    """Layers read and write a type of 16 bits, between casts that the runtime drops where layers follow each other."""
    if kind == TensorProto.BFLOAT16:
        prepared = version_converter.convert_version(prepared, BF16_OPSET)
    values = {one.name: one for one in prepared.graph.initializer}
    converted = {layer.name: layer for layer in layers}
    if kind == TensorProto.FLOAT16:
        for node in prepared.graph.node:
            for name in node.input:
                if node.name in converted and name in values:
                    _check_range(values[name], converted[node.name])

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(prepared)
        nodes: list[NodeProto] = []
        done: set[str] = set()
        for node in model.graph.node:
            if node.name not in converted or node.name in kept:
                nodes.append(node)
                continue
            for index, name in enumerate(node.input):
                node.input[index] = narrow = f"{name}_narrow"
                if name in done:
                    continue
                done.add(name)
                if name in values:
                    array = numpy_helper.to_array(values[name])
                    kinds = helper.tensor_dtype_to_np_dtype(kind)
                    model.graph.initializer.append(numpy_helper.from_array(array.astype(kinds), narrow))
                else:
                    nodes.append(helper.make_node("Cast", [name], [narrow], narrow, to=kind))
            wide = node.output[0]
            node.output[0] = f"{wide}_half"
            nodes += [node, helper.make_node("Cast", [node.output[0]], [wide], f"{wide}_widen", to=TensorProto.FLOAT)]
        _replace_nodes_(model, nodes)
        read = {name for node in model.graph.node for name in node.input}
        for one in [one for one in model.graph.initializer if one.name not in read]:
            model.graph.initializer.remove(one)
        return model

    return Scheme(tuple(layers), build, {"computes_in": TensorProto.DataType.Name(kind).lower()})


def _operators(model: onnx.ModelProto) -> list[str]:
    return sorted({node.op_type for node in model.graph.node}.intersection(OPERATORS))


def _has_kernel(kind: int, operator: str) -> bool:
    """Whether a layer of one operator still has weights of the type after the runtime has prepared it to run."""
    shape = [8, 8, 1, 1] if operator.startswith("Conv") else [8, 8]
    weight = helper.make_tensor("weight", kind, shape, [0.5] * 64)
    nodes = [
        helper.make_node("Cast", ["input"], ["narrow"], to=kind),
        helper.make_node(operator, ["narrow", "weight"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["logits"], to=TensorProto.FLOAT),
    ]
    rows = helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 8, *([4, 4] if len(shape) == 4 else [])])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, operator, [rows], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", BF16_OPSET)], ir_version=10)
    with tempfile.TemporaryDirectory() as work:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(work, "prepared.onnx"))
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # the runtime's errors share no class of their own; any of them means that it cannot
            return False
        prepared = onnx.load(options.optimized_model_filepath)
    kinds = {one.name: one.data_type for one in prepared.graph.initializer}
    return any(node.op_type == operator and kinds.get(node.input[1]) == kind for node in prepared.graph.node)


def _check_range(constant: TensorProto, layer: Layer) -> None:
    largest = float(np.abs(numpy_helper.to_array(constant)).max())
    limit = float(np.finfo(np.float16).max)
    if largest > limit:
        raise InputError(f"fp16 reaches {limit:.0f} and {layer.label} holds {largest:.3g}; normalise its inputs")


def _replace_nodes_(model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
