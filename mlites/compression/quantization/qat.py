"""Quantization-aware training: the network learns with the rounding of INT8, and ends as the ONNX file that it trained.

Sources: Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference"; Krishnamoorthi (2018), "Quantizing deep convolutional networks for efficient inference: A whitepaper".

The network is exported and statically quantized first; then the exported graph itself trains, with rounding wherever
the quantized one rounds. So every network that exports can train, and the kernels are those of static quantization.
Batch normalization behind a layer, which the export folds, normalizes by batches again until three quarters of the
training are done: folded for good it would train at a tenth of the learning rate only. Dropout is left out, as is
usual in a fine-tuning this short.
"""

import copy
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlites.compression.pruning.magnitude import zero_masks
from mlites.compression.quantization.calibration import evenly
from mlites.compression.quantization.fake_quantization import ActivationQuantizer, activation_scale
from mlites.compression.quantization.onnx_network import OnnxNetwork, unknown_operators
from mlites.compression.quantization.qdq_export import find_places, write_learned_
from mlites.compression.quantization.quantized_network import QuantizedNetwork
from mlites.compression.quantization.reduce_range import reduces_range
from mlites.compression.quantization.scheme import prepare, quiet
from mlites.compression.quantization.static import quantize_static_int8
from mlites.errors import InputError, ParityError
from mlites.export import OPSET, answers, compact_, export_onnx
from mlites.inference import OUTPUT
from mlites.recipe import QAT
from mlites.training.loop import TrainingData, evaluate, train
from mlites.training.resume import Epoch

from onnxruntime.quantization.onnx_model import ONNXModel  # isort: skip  # after mlites.inference, which sets telemetry

CALIBRATION_ROWS = 256
COMPARED_ROWS = 32
LEAST_ALIKE = 0.995  # share of the rows that the file and the trained network answer alike
ROWS_SPARED = 2  # whatever their share: of few rows, one may fall on the other side by chance
TIE_STEPS = 2
MEAN_STEPS = 1.0
TOLERANCE = 1e-3  # of the largest logit: between the graph in torch and in ONNX Runtime, before training


def train_quantized(
    module: nn.Module,
    data: TrainingData,
    options: QAT,
    seed: int,
    *,
    input_shape: Sequence[int],
    keep_zeros: bool = False,
    checkpoint: Path | None = None,
) -> tuple[onnx.ModelProto, list[Epoch], dict[str, float]]:
    """Train a network with INT8 rounding and write it as INT8 ONNX.

    Args:
        module: trained, float32, (n, *input_shape) -> logits (n, classes); left unchanged.
        data: rows to calibrate, train and decide on.
        options: the pass.
        seed: of the order of the rows.
        input_shape: of one row.
        keep_zeros: weights that are zero stay zero, in the file's integers too.
        checkpoint: file that outlives a killed run.

    Returns:
        The model in QDQ form, weights int8 and activations uint8; one entry an epoch; facts: accuracies of the given
        network, of the trained one with its rounding simulated, and of the file; sizes; bits of a weight; and how
        far the file's logits lie from the simulation's.

    Raises:
        InputError: the network does not export, or trains through no operator of its graph.
        ParityError: the file answers differently from what was trained.
    """
    exported = export_onnx(module, input_shape)
    prepared = prepare(exported)
    _own_biases_(prepared)
    unknown = unknown_operators(prepared)
    if unknown:
        raise InputError(_refusal(module, input_shape, unknown))
    levels = 64 if reduces_range(options.reduce_range) else 127
    rows = data.inputs[evenly(len(data.inputs), CALIBRATION_ROWS)].numpy()
    _check_computes_alike(prepared, exported, rows[:COMPARED_ROWS])
    quantized = quantize_static_int8(prepared, rows, per_channel=options.per_channel)
    places = find_places(quantized, prepared)
    steps = options.training.epochs * math.ceil(len(data.labels) / options.training.batch_size)
    network = QuantizedNetwork(prepared, module, places, rows, levels, steps)
    masks = zero_masks(network) if keep_zeros else {}
    before, _ = evaluate(module, data.validation_inputs, data.validation_labels)
    history = train(network, data, options.training, seed, masks=masks, checkpoint=checkpoint)
    write_learned_(quantized, places, network.learned_ranges(), network.learned_tensors(), levels)
    ONNXModel(quantized).topological_sort()
    compact_(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    simulated, logits = evaluate(network, data.validation_inputs, data.validation_labels)
    found = answers(quantized, data.validation_inputs.numpy())
    return quantized, history, {
        "float_validation_accuracy": before,
        "simulated_validation_accuracy": simulated,
        "validation_accuracy": float((found.argmax(1) == data.validation_labels.numpy()).mean()),
        "float_size_bytes": exported.ByteSize(),
        "size_bytes": quantized.ByteSize(),
        "weight_bits": 7 if levels == 64 else 8,
        **_check_parity(found, logits.numpy(), _step(network.ranges.get(OUTPUT), logits)),
    }  # fmt: skip


def _own_biases_(model: onnx.ModelProto) -> None:
    """Give every reader of a vector its own: the exporter stores equal ones once, and training makes them differ."""
    stored = {one.name: one for one in model.graph.initializer if len(one.dims) == 1}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        for place, name in enumerate(node.input):
            if name in seen and stored[name].data_type == onnx.TensorProto.FLOAT:
                own = model.graph.initializer.add()
                own.CopyFrom(stored[name])
                node.input[place] = own.name = f"{name}_{index}_{place}"
            elif name in stored:
                seen.add(name)


def _check_computes_alike(prepared: onnx.ModelProto, exported: onnx.ModelProto, rows: NDArray[np.float32]) -> None:
    """Refuse to train a graph that torch does not compute as ONNX Runtime does."""
    expected = answers(exported, rows)
    try:
        with torch.no_grad():
            found = OnnxNetwork(prepared, [], {}).eval()(torch.from_numpy(rows)).numpy()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"quantization-aware training cannot run this network's graph: {reason}") from error
    difference, limit = float(np.abs(found - expected).max()), TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= limit:
        raise InputError(
            f"quantization-aware training computes this network's graph otherwise than ONNX Runtime: logits differ "
            f"by {difference:.3g} (limit {limit:.3g}); use quantize, method: static"
        )


def _check_parity(found: NDArray[np.float32], expected: NDArray[np.float32], step: float) -> dict[str, float]:
    """Compare the file's logits (n, classes) with those of the network in training.

    Both round, and a sum that ends near the middle between two values may be rounded either way: in a deep network the
    runtime's fused kernels differ from its own unfused ones by half a step. So a row counts as answered alike where the
    network's logit of the file's class is its largest, or next to it.
    """
    apart = np.abs(found - expected) / step
    rows, ours, theirs = np.arange(len(found)), expected.argmax(1), found.argmax(1)
    differ = int((expected[rows, ours] - expected[rows, theirs] > TIE_STEPS * step * 1.001).sum())
    mean, largest = float(apart.mean()), float(apart.max())
    if differ > max(ROWS_SPARED, (1 - LEAST_ALIKE) * len(found)) or mean > MEAN_STEPS:
        raise ParityError(
            f"the INT8 file differs from the network that was trained, on {len(found)} rows: "
            f"{100 - 100 * differ / len(found):.2f}% are answered alike (limit {100 * LEAST_ALIKE:g}%), logits lie "
            f"{mean:.2g} quantization steps apart (limit {MEAN_STEPS:g}); where 8-bit products saturate, "
            "set reduce_range: true"
        )
    return {"agreement": float((ours == theirs).mean()), "mean_steps_apart": mean, "largest_steps_apart": largest}


def _step(quantizer: ActivationQuantizer | None, logits: Tensor) -> float:
    """Between two values of the logits; of those that stay float, what it would be."""
    low, high = (quantizer.low, quantizer.high) if quantizer else torch.aminmax(logits)
    return float(activation_scale(low, high)[0])


def _refusal(module: nn.Module, input_shape: Sequence[int], unknown: list[str]) -> str:
    """One line with the layers whose operators cannot be trained through."""
    layers = []
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy.deepcopy(module).eval(), (torch.zeros(2, *input_shape),), dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=OPSET, verbose=False,
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph:
        if node.op_type in unknown:
            *scopes, _call = re.findall("'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", "''"))
            layer = next((f"layer {scope!r}" for scope in reversed(scopes) if scope), "the network's own forward")
            layers.append(f"{node.op_type} in {layer}")
    return (
        f"quantization-aware training knows no gradient of {', '.join(dict.fromkeys(layers)) or ', '.join(unknown)}; "
        "use quantize, method: static, which needs none"
    )
