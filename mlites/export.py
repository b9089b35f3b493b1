"""PyTorch to ONNX: one self-contained file of standard operators, the same bytes each time, checked on real rows."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from mlites.errors import InputError, ParityError
from mlites.inference import INPUT, OUTPUT, infer, open_session

OPSET = 18
TOLERANCE = 1e-4  # of the largest logit, or of 1 where all are smaller
ROWS_AT_A_TIME = 256


def export_onnx(module: nn.Module, input_shape: Sequence[int]) -> onnx.ModelProto:
    """Export a module in evaluation mode, with an open batch dimension.

    Batch normalization is folded into convolutions, constants are computed: the result is as fast as FP32 gets without
    operators that only one runtime knows.

    Args:
        module: float32, (n, *input_shape) -> logits (n, classes); left unchanged.
        input_shape: of one row.

    Returns:
        A model with input ``input`` [batch, *input_shape] and output ``logits`` [batch, classes], without traces of
        the source code that made it.
    """
    training = module.training
    with warnings.catch_warnings(), _exporter_log_off():
        # the exporter's own use of what PyTorch has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            program = torch.onnx.export(
                module.eval(),
                (torch.zeros(2, *input_shape),),  # a batch of 1 would be taken for a constant
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
            raise InputError(f"this network cannot be exported to ONNX with an open batch: {reason}") from error
        finally:
            module.train(training)
    assert program is not None  # as it is when a file is asked for
    model: onnx.ModelProto = onnx.ModelProto.FromString(program.model_proto.SerializeToString())
    _pool_globally_(model)
    compact_(model)
    onnx.checker.check_model(model, full_check=True)
    for value in (model.graph.input[0], model.graph.output[0]):
        first = value.type.tensor_type.shape.dim[:1]
        if not first or not first[0].dim_param:
            raise InputError("this network cannot be exported to ONNX with an open batch: it fixes the number of rows")
    return model


def check_parity(model: onnx.ModelProto, module: nn.Module, inputs: NDArray[np.float32]) -> dict[str, float]:
    """Compare ONNX Runtime's answers with the module's.

    Args:
        model: the export.
        module: its source, in evaluation mode.
        inputs: rows (n, *input_shape) to compare on.

    Returns:
        max_abs_difference of the logits, and agreement: the fraction of rows given the same class.

    Raises:
        ParityError: the difference is above 1e-4 of the largest logit (or of 1), or classes differ in 1 of 1000 rows.
    """
    found = answers(model, inputs)
    with torch.no_grad():
        expected = np.concatenate([module(torch.from_numpy(piece)).numpy() for piece in _pieces(inputs)])
    if found.shape != expected.shape:
        raise ParityError(f"ONNX gives logits of shape {found.shape}, PyTorch {expected.shape}")
    difference = float(np.abs(found - expected).max())
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    if not difference <= limit or agreement < 0.999:
        raise ParityError(
            f"ONNX differs from PyTorch on {len(inputs)} rows: logits by up to {difference:.3g} (limit {limit:.3g}), "
            f"the same class in {100 * agreement:.2f}% (limit 99.9%)"
        )
    return {"max_abs_difference": difference, "agreement": agreement}


def answers(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (n, classes) that ONNX Runtime gives for rows (n, *input_shape)."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "model.onnx")
        path.write_bytes(model.SerializeToString())
        session = open_session(path, threads=1)
        return np.concatenate([infer(session, path, piece) for piece in _pieces(inputs)])


def compact_(model: onnx.ModelProto) -> None:
    """Drop what no runtime needs: notes on source code and tools, unread constants, inferred shapes, long names.

    Names alone are a quarter of a small INT8 model.
    """
    graph = model.graph
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version, graph.name = "mlites", "", "model"
    read = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    nested = any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)
    if nested:  # a graph within a node reads names from outside
        return
    for unused in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(unused)
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    domains = {node.domain for node in graph.node} | {""}
    for entry in [one for one in model.opset_import if one.domain not in domains]:
        model.opset_import.remove(entry)
    names = {one.name: one.name for one in (*graph.input, *graph.output)} | {"": ""}
    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
        node.input[:] = [names.setdefault(name, f"{len(names):x}") for name in node.input]
        node.output[:] = [names.setdefault(name, f"{len(names):x}") for name in node.output]
    for one in graph.initializer:
        one.name = names[one.name]


def _pieces(inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return np.split(inputs, range(ROWS_AT_A_TIME, len(inputs), ROWS_AT_A_TIME))


@contextmanager
def _exporter_log_off() -> Iterator[None]:
    """Drop its notes that torchvision, which these networks do not use, is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _pool_globally_(model: onnx.ModelProto) -> None:
    """Means over height and width become GlobalAveragePool, which quantizes and ReduceMean does not."""
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in (*graph.input, *graph.value_info)}
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or ranks.get(node.input[0]) != 4:
            continue
        axes = constants.get(node.input[1], np.zeros(0, np.int64))
        if sorted(axis % 4 for axis in axes.flatten().tolist()) != [2, 3]:
            continue
        kept = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        source, target = node.input[0], node.output[0]
        pooled = target if kept else f"{target}_pooled"
        graph.node.remove(node)
        if not kept:
            graph.node.insert(index, helper.make_node("Flatten", [pooled], [target], f"{target}_flatten", axis=1))
        graph.node.insert(index, helper.make_node("GlobalAveragePool", [source], [pooled], f"{target}_pool"))
