"""Every method through the one entry: its facts, its file in a fresh process, its limits."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from mlites.compression.quantization import quantize
from mlites.compression.quantization.quantize import quantize_model
from mlites.compression.quantization.reduce_range import reduces_range
from mlites.errors import InputError
from mlites.export import answers
from mlites.recipe import Quantize


def run(model: onnx.ModelProto, rows: np.ndarray, **options: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    labels = answers(model, rows).argmax(1)
    chosen = Quantize(technique="quantize", **options)
    return quantize_model(model, chosen, calibration=rows, validation_inputs=rows, validation_labels=labels)


CASES = [
    ("resnet", {"method": "static"}),
    ("mobile", {"method": "static", "calibration": "entropy"}),
    ("attention", {"method": "static", "calibration": "percentile", "per_channel": False}),
    ("resnet", {"method": "static", "sensitive_layers": 3, "reduce_range": True}),
    ("mlp", {"method": "static", "max_drop_points": 1.0}),
    ("mlp", {"method": "dynamic"}),
    ("attention", {"method": "dynamic", "sensitive_layers": 1}),
    ("mobile", {"method": "fp16"}),
    ("attention", {"method": "int4", "block_size": 16}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_file_answers_alike_in_a_fresh_process(
    networks: dict[str, onnx.ModelProto],
    pictures: np.ndarray,
    in_fresh_process: Callable[[onnx.ModelProto, np.ndarray], np.ndarray],
    name: str,
    options: dict[str, Any],
) -> None:
    model = networks[name]
    before = model.SerializeToString(deterministic=True)
    quantized, facts = run(model, pictures, **options)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(quantized)
    assert [one.name for one in (*quantized.graph.input, *quantized.graph.output)] == ["input", "logits"]
    rows = pictures[:100]
    assert np.array_equal(in_fresh_process(quantized, rows), answers(quantized, rows[:256]))
    again, facts_again = run(model, pictures, **options)
    assert again.SerializeToString(deterministic=True) == quantized.SerializeToString(deterministic=True)
    assert facts_again == facts == json.loads(json.dumps(facts, allow_nan=False))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_facts_state_what_was_done(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray, name: str, options: dict[str, Any]
) -> None:
    model = networks[name]
    quantized, facts = run(model, pictures, **options)
    labels = answers(model, pictures).argmax(1)
    assert facts["validation_accuracy_before"] == 1.0
    assert facts["validation_accuracy"] == float((answers(quantized, pictures).argmax(1) == labels).mean())
    assert facts["drop_points_after"] == pytest.approx(100 * (1 - facts["validation_accuracy"]))
    assert facts["size_bytes_before"] == len(model.SerializeToString(deterministic=True))
    assert facts["size_bytes"] == len(quantized.SerializeToString(deterministic=True))
    if "sensitive_layers" in options:
        assert len(facts["layers_kept_float"]) == options["sensitive_layers"]
    if options["method"] in ("static", "dynamic"):
        assert facts["reduce_range"] == options.get("reduce_range", reduces_range("auto"))
    if options["method"] == "static" and not facts["layers_kept_float"]:
        assert facts["layers_quantized"] == sum(
            one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1 for one in quantized.graph.initializer
        )


def test_reduced_range_keeps_weights_to_seven_bits(networks: dict[str, onnx.ModelProto], pictures: np.ndarray) -> None:
    for reduce, largest in ((True, 64), (False, 127)):
        for method in ("static", "dynamic"):
            quantized, _ = run(networks["mlp"], pictures, method=method, reduce_range=reduce)
            weights = [
                onnx.numpy_helper.to_array(one)
                for one in quantized.graph.initializer
                if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1
            ]
            assert len(weights) == 2
            assert max(int(np.abs(one.astype(np.int16)).max()) for one in weights) == largest


def test_sensitive_layers_must_leave_one(networks: dict[str, onnx.ModelProto], pictures: np.ndarray) -> None:
    with pytest.raises(
        InputError, match=r"sensitive_layers: 2 of the 2 layers .* which leaves none; ask for 1 at most"
    ):
        run(networks["mlp"], pictures, sensitive_layers=2)


def test_a_limit_beyond_reach_gives_the_float_model_and_says_so(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray
) -> None:
    model = networks["attention"]
    labels = answers(model, pictures).argmax(1)
    chosen = Quantize(technique="quantize", method="int4", block_size=256, max_drop_points=0.0)
    with pytest.raises(InputError, match="256 rows at least, and this model has MatMul 1"):
        quantize_model(model, chosen, calibration=pictures, validation_inputs=pictures, validation_labels=labels)
    chosen = Quantize(technique="quantize", method="int4", block_size=32, max_drop_points=0.0)
    found, facts = quantize_model(
        model, chosen, calibration=pictures, validation_inputs=pictures, validation_labels=labels
    )
    assert facts["drop_points_before_rollback"] > 0
    assert facts["drop_points_after"] <= 0 and facts["drop_bound_points_after"] <= 0
    least = "150 validation rows cannot rule out a drop of less than 1.55 points"
    assert facts.get("rolled_back", least).endswith(least)
    assert (found is model) == (facts["layers_quantized"] == 0) == ("rolled_back" in facts)


def test_methods_for_matrices_count_the_convolutions_they_leave(
    networks: dict[str, onnx.ModelProto], pictures: np.ndarray
) -> None:
    _, facts = run(networks["mobile"], pictures, method="dynamic")
    assert facts["layers_beyond_this_method"] == {"Conv": 5} and facts["layers_quantized"] == 1


def test_every_method_of_a_recipe_is_there() -> None:
    kinds = Quantize.model_json_schema()["properties"]["method"]["enum"]
    assert set(quantize.METHODS) == set(kinds)
