"""Triton's model repository: what config.pbtxt says about a model, and which versions it names.

The same text serves the embedded Triton, whose "onnxruntime" is ours, and a production Triton with NVIDIA's.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from mlites.inference import INPUT, OUTPUT
from mlites.models.card import ModelCard
from mlites.recipe import Serving


def configuration(
    name: str,
    card: ModelCard,
    serving: Serving,
    versions: list[int],
    threads: int,
    sha256: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the model in Triton.
        card: the ONNX model's; input shape, classes and preprocessing are taken from it.
        serving: batch size, queue delay and instances.
        versions: to be loaded, ascending; callers that name none get the last.
        threads: of one instance's ONNX Runtime session.
        sha256: of the versions' model.onnx; the embedded backend loads no other bytes.
    """
    config = model_config_pb2.ModelConfig(name=name, backend="onnxruntime", max_batch_size=serving.max_batch_size)
    config.input.add(name=INPUT, data_type=model_config_pb2.TYPE_FP32, dims=card.input_shape)
    config.output.add(name=OUTPUT, data_type=model_config_pb2.TYPE_FP32, dims=[len(card.classes)])
    config.instance_group.add(count=serving.instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = serving.max_queue_delay_us
    config.version_policy.specific.versions.extend(versions)
    for size in sorted({1, serving.max_batch_size}):
        sample = config.model_warmup.add(name=f"batch-{size}", batch_size=size)
        sample.inputs[INPUT].data_type = model_config_pb2.TYPE_FP32
        sample.inputs[INPUT].dims.extend(card.input_shape)
        sample.inputs[INPUT].zero_data = True
    parameters = {
        "intra_op_thread_count": str(threads),
        "inter_op_thread_count": "1",
        "classes": json.dumps(card.classes, ensure_ascii=False),
        "preprocessing": json.dumps(card.preprocessing, sort_keys=True),
        "model_digest": card.digest,
        **{f"sha256.{version}": digest for version, digest in sha256.items()},
    }
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    text: str = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
    return text


def configuration_json(text: str) -> dict[str, Any]:
    """A configuration as Triton's load request takes it."""
    from google.protobuf import json_format

    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    content: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return content


def versions_in(text: str) -> list[int]:
    """The versions that a config.pbtxt names, ascending.

    Raises:
        ValueError: not a configuration with a specific version policy, so not one of ours.
    """
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(f"not a model configuration: {error}") from None
    versions = sorted(config.version_policy.specific.versions)
    if not versions:
        raise ValueError("it names no versions (version_policy specific)")
    return versions


def model_key(name: str, *parts: str | int) -> str:
    """Key of something of a model in the store."""
    return "/".join(["repository", name, *map(str, parts)])
