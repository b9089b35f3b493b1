"""Preprocessing on the server: a Triton ensemble that takes raw rows and answers with probabilities and labels.

Version N of ``<model>-raw`` asks version N of the model, between two small ONNX models: ``<model>-pre`` normalises,
``<model>-post`` makes probabilities of logits. These have numbers of their own, since they seldom change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from mlites.data.dataset import Preprocessing
from mlites.inference import INPUT, OUTPUT
from mlites.models.card import ModelCard
from mlites.recipe import Serving

RAW, PROBABILITIES, CLASS = "raw", "probabilities", "class"
LABELS = "labels.txt"
OPSET, IR_VERSION = 17, 8  # any ONNX Runtime of a production Triton reads these
ENSEMBLE, PREPROCESS, POSTPROCESS = "raw", "pre", "post"


def part_name(model: str, part: str) -> str:
    """Name in Triton of the ensemble ("raw") or of one of its own parts ("pre", "post").

    >>> part_name("digits", ENSEMBLE)
    'digits-raw'
    """
    return f"{model}-{part}"


def raw_type(card: ModelCard) -> type[np.uint8] | type[np.float32]:
    """Type of raw rows: 8-bit pixels of images, float32 features of a table, as prepared data hold them."""
    return np.uint8 if len(card.input_shape) == 3 else np.float32


def preprocessing_model(card: ModelCard) -> bytes:
    """ONNX: raw (n, ...) -> input (n, ...), by the same four steps in float32 as `Preprocessing.apply`."""
    numbers = Preprocessing.from_json(card.preprocessing)
    across = (1, -1) + (1,) * (len(card.input_shape) - 1)
    constants = {
        "scale": np.asarray(numbers.scale, np.float32),
        "mean": np.asarray(numbers.mean, np.float32).reshape(across),
        "std": np.asarray(numbers.std, np.float32).reshape(across),
    }
    nodes = [
        helper.make_node("Cast", [RAW], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], [INPUT]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(raw_type(card)))
    shape: list[str | int] = ["batch", *card.input_shape]
    return _model(nodes, [(RAW, kind, shape)], [(INPUT, TensorProto.FLOAT, shape)], constants)


def postprocessing_model(card: ModelCard) -> bytes:
    """ONNX: logits (n, classes) -> probabilities (n, classes) and class (n, 1), the index of the largest."""
    nodes = [
        helper.make_node("Softmax", [OUTPUT], [PROBABILITIES], axis=1),
        helper.make_node("ArgMax", [OUTPUT], [CLASS], axis=1, keepdims=1),
    ]
    shape: list[str | int] = ["batch", len(card.classes)]
    return _model(
        nodes,
        [(OUTPUT, TensorProto.FLOAT, shape)],
        [(PROBABILITIES, TensorProto.FLOAT, shape), (CLASS, TensorProto.INT64, ["batch", 1])],
        {},
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[str | int]]],
    outputs: Sequence[tuple[str, int, Sequence[str | int]]],
    constants: dict[str, NDArray[np.float32]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "mlites",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class _Tensor:
    name: str
    kind: int
    dims: tuple[int, ...]


def _tensors(card: ModelCard) -> dict[str, _Tensor]:
    kind = {np.uint8: model_config_pb2.TYPE_UINT8, np.float32: model_config_pb2.TYPE_FP32}[raw_type(card)]
    classes = len(card.classes)
    return {
        RAW: _Tensor(RAW, kind, card.input_shape),
        INPUT: _Tensor(INPUT, model_config_pb2.TYPE_FP32, card.input_shape),
        OUTPUT: _Tensor(OUTPUT, model_config_pb2.TYPE_FP32, (classes,)),
        PROBABILITIES: _Tensor(PROBABILITIES, model_config_pb2.TYPE_FP32, (classes,)),
        CLASS: _Tensor(CLASS, model_config_pb2.TYPE_INT64, (1,)),
    }


def _config(
    name: str, card: ModelCard, serving: Serving, versions: list[int], inputs: list[str], outputs: list[str]
) -> model_config_pb2.ModelConfig:
    tensors = _tensors(card)
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=serving.max_batch_size)
    for names, add in ((inputs, config.input.add), (outputs, config.output.add)):
        for one in names:
            add(name=one, data_type=tensors[one].kind, dims=tensors[one].dims)
    config.version_policy.specific.versions.extend(versions)
    return config


def part_configuration(model: str, part: str, card: ModelCard, serving: Serving, versions: list[int]) -> str:
    """The text of config.pbtxt of ``<model>-pre`` or ``<model>-post``; every version does the same in one run.

    Args:
        model: whose part.
        part: "pre" or "post".
        card: the ONNX model's.
        serving: batch size and queue delay, as of the model.
        versions: to be loaded.
    """
    ends = {PREPROCESS: ([RAW], [INPUT]), POSTPROCESS: ([OUTPUT], [PROBABILITIES, CLASS])}[part]
    config = _config(part_name(model, part), card, serving, versions, *ends)
    config.backend = "onnxruntime"
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = 0  # the model in the middle is what waits
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        config.parameters[key].string_value = "1"
    return _text(config)


def ensemble_configuration(
    model: str, card: ModelCard, serving: Serving, version: int, parts: Mapping[str, int], name: str | None = None
) -> str:
    """The text of config.pbtxt of ``<model>-raw``, which asks one version of the model and has its number.

    Args:
        model: in the middle of the ensemble.
        card: the ONNX model's.
        serving: batch size, as of the model.
        version: of the model.
        parts: versions of "pre" and "post".
        name: another one than ``<model>-raw``.
    """
    name = name or part_name(model, ENSEMBLE)
    config = _config(name, card, serving, [version], [RAW], [PROBABILITIES, CLASS])
    config.platform = "ensemble"
    config.output[0].label_filename = LABELS
    steps = (
        (part_name(model, PREPROCESS), parts[PREPROCESS], {RAW: RAW}, {INPUT: "normalised"}),
        (model, version, {INPUT: "normalised"}, {OUTPUT: OUTPUT}),
        (
            part_name(model, POSTPROCESS),
            parts[POSTPROCESS],
            {OUTPUT: OUTPUT},
            {PROBABILITIES: PROBABILITIES, CLASS: CLASS},
        ),
    )
    for part, number, reads, writes in steps:
        step = config.ensemble_scheduling.step.add(model_name=part, model_version=number)
        step.input_map.update(reads)
        step.output_map.update(writes)
    return _text(config)


def _text(config: model_config_pb2.ModelConfig) -> str:
    text: str = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
    return text
