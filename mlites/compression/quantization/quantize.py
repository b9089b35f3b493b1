"""Post-training quantization of an ONNX model by any method, with layers left in float where accuracy asks for it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mlites.compression.quantization.calibration import Rows
from mlites.compression.quantization.dynamic import dynamic_int8
from mlites.compression.quantization.half import bf16, fp16
from mlites.compression.quantization.int4 import int4
from mlites.compression.quantization.reduce_range import reduces_range
from mlites.compression.quantization.rollback import Drop, paired_drop, roll_back, smallest_limit_points
from mlites.compression.quantization.scheme import Layer, Scheme
from mlites.compression.quantization.sensitivity import measure_sensitivity
from mlites.compression.quantization.static import static_int8
from mlites.errors import InputError
from mlites.export import answers, compact_
from mlites.recipe import Quantize


def quantize_model(
    model: onnx.ModelProto,
    options: Quantize,
    *,
    calibration: Rows,
    validation_inputs: NDArray[np.float32],
    validation_labels: NDArray[np.int64],
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantize a float model as a recipe's pass says; equal input on equal machines gives equal bytes.

    Args:
        model: FP32, weights inside; left unchanged.
        options: the pass.
        calibration: training rows (n, *input_shape), all of which are used, and by method static alone.
        validation_inputs: rows (n, *input_shape) that decide which layers stay in float.
        validation_labels: (n,).

    Returns:
        The quantized model, or the float one where rollback finds none within its limit; and the facts for its card.

    Raises:
        InputError: the method does not suit the model or this machine.
    """
    scheme = METHODS[options.method](model, options, calibration)
    logits = answers(model, validation_inputs)
    facts: dict[str, Any] = {**scheme.facts, "size_bytes_before": _size(model)}
    kept: tuple[Layer, ...] = ()
    was_right = logits.argmax(1) == validation_labels
    if options.max_drop_points is not None:
        done = roll_back(model, scheme, logits, validation_inputs, validation_labels, options.max_drop_points)
        quantized, kept, drop = done.model, done.kept, done.after
        facts |= _drop_facts("before_rollback", done.before) | {
            "evaluations": done.evaluations,
            "sensitivity_evaluations": done.sensitivity_evaluations,
        }
        if len(kept) == len(scheme.layers):
            least = smallest_limit_points(len(validation_labels))
            facts["rolled_back"] = (
                "no layer can be quantized within the limit, so the model is the float one it was; "
                f"{len(validation_labels)} validation rows cannot rule out a drop of less than {least:.2f} points"
            )
    else:
        if options.sensitive_layers:
            kept = _sensitive(scheme, logits, validation_inputs, options.sensitive_layers)
        quantized = scheme.build(frozenset(layer.name for layer in kept))
    if quantized is not model:
        compact_(quantized)
    right = answers(quantized, validation_inputs).argmax(1) == validation_labels
    if options.max_drop_points is None:
        drop = paired_drop(was_right, right)
    operators = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    untouched = Counter(node.op_type for node in quantized.graph.node if node.op_type in operators)
    facts |= _drop_facts("after", drop) | {
        "validation_accuracy_before": float(was_right.mean()),
        "validation_accuracy": float(right.mean()),
        "size_bytes": _size(quantized),
        "layers_quantized": len(scheme.layers) - len(kept),
        "layers_kept_float": [layer.label for layer in kept],
    }
    if options.method in ("dynamic", "int4") and untouched and quantized is not model:
        facts["layers_beyond_this_method"] = dict(sorted(untouched.items()))
    return quantized, facts


def _sensitive(
    scheme: Scheme, logits: NDArray[np.float32], inputs: NDArray[np.float32], count: int
) -> tuple[Layer, ...]:
    if count >= len(scheme.layers):
        raise InputError(
            f"sensitive_layers: {count} of the {len(scheme.layers)} layers that this method quantizes would stay in "
            f"float, which leaves none; ask for {len(scheme.layers) - 1} at most"
        )
    names = {one.layer.name for one in measure_sensitivity(scheme, logits, inputs)[:count]}
    return tuple(layer for layer in scheme.layers if layer.name in names)


def _drop_facts(when: str, drop: Drop) -> dict[str, float]:
    return {f"drop_points_{when}": drop.points, f"drop_bound_points_{when}": drop.bound_points}


def _size(model: onnx.ModelProto) -> int:
    return len(model.SerializeToString(deterministic=True))


def _static(model: onnx.ModelProto, options: Quantize, rows: Rows) -> Scheme:
    return static_int8(
        model,
        rows,
        per_channel=options.per_channel,
        calibration=options.calibration,
        reduce_range=reduces_range(options.reduce_range),
    )


def _dynamic(model: onnx.ModelProto, options: Quantize, _rows: Rows) -> Scheme:
    return dynamic_int8(model, per_channel=options.per_channel, reduce_range=reduces_range(options.reduce_range))


METHODS: dict[str, Callable[[onnx.ModelProto, Quantize, Rows], Scheme]] = {
    "static": _static,
    "dynamic": _dynamic,
    "fp16": lambda model, _options, _rows: fp16(model),
    "bf16": lambda model, _options, _rows: bf16(model),
    "int4": lambda model, options, _rows: int4(model, options.block_size),
}
