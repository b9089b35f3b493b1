"""Hard sigmoids that integers clip by themselves."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mlites.compression.quantization.hard_sigmoid import saturate_hard_sigmoids_
from mlites.compression.quantization.static import quantize_static_int8, static_int8
from mlites.export import answers


def chain(scale: float, zero: int, *, multiply: bool, alpha: float = 1 / 6, extra: bool = False) -> onnx.ModelProto:
    """Input -> uint8 -> hard sigmoid (times the input) -> uint8 -> logits, as the quantizer writes it."""
    constants = {"s": np.float32(scale), "z": np.uint8(zero), "hs": np.float32(1 / 255), "hz": np.uint8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("HardSigmoid", ["x"], ["h"], alpha=alpha, beta=0.5),
        helper.make_node("QuantizeLinear", ["h", "hs", "hz"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "hs", "hz"], ["hx"]),
        helper.make_node("Mul", ["x", "hx"], ["logits"])
        if multiply
        else helper.make_node("Identity", ["hx"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8])]
    if extra:
        nodes.append(helper.make_node("Abs", ["x"], ["other"]))
        outputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 8]))
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    rows = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "chain", [rows], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def evaluate(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    (found,) = ReferenceEvaluator(model).run(["logits"], {"input": rows})
    return np.asarray(found)


@pytest.mark.parametrize(("low", "high"), [(-8.0, 12.0), (-8.0, 2.0), (-1.0, 5.0), (-20.0, 60.0)])
def test_hard_swish_stays_within_the_steps_of_its_factors(low: float, high: float) -> None:
    scale = (high - low) / 255
    model = chain(scale, round(-low / scale), multiply=True)
    rows = np.linspace(low, high, 800, dtype=np.float32).reshape(100, 8)
    assert saturate_hard_sigmoids_(model) == 1
    expected = rows * np.clip(rows / 6 + 0.5, 0, 1)
    step = (high + 3) / 254  # of the input as it is stored now; the slope of hard-swish is 1.5 at most
    assert np.abs(evaluate(model, rows) - expected).max() <= 1.5 * 0.51 * step + 0.05
    kinds = [node.op_type for node in model.graph.node]
    assert "HardSigmoid" not in kinds and kinds.count("Min") == (high > 3)
    assert kinds.count("QuantizeLinear") == 1


def test_a_lone_hard_sigmoid_is_stored_between_its_knees() -> None:
    model = chain(0.1, 128, multiply=False)
    rows = np.linspace(-12, 12, 800, dtype=np.float32).reshape(100, 8)
    assert saturate_hard_sigmoids_(model) == 1
    found = evaluate(model, rows)
    assert np.abs(found - np.clip(rows / 6 + 0.5, 0, 1)).max() <= 1 / 250
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Identity"]


@pytest.mark.parametrize("model", [chain(0.1, 128, multiply=True, alpha=0.2), chain(0.1, 9, multiply=True, extra=True)])
def test_other_slopes_and_inputs_read_elsewhere_are_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert saturate_hard_sigmoids_(model) == 0 and model.SerializeToString() == before


def test_a_mobile_network_loses_no_accuracy_by_it(networks: dict[str, onnx.ModelProto], pictures: np.ndarray) -> None:
    model = networks["mobile"]
    plain = quantize_static_int8(model, pictures)
    ours = static_int8(model, pictures, per_channel=True, calibration="minmax", reduce_range=False).build(frozenset())
    assert sum(node.op_type == "HardSigmoid" for node in plain.graph.node) == 3
    assert not any(node.op_type == "HardSigmoid" for node in ours.graph.node)
    expected = answers(model, pictures)
    errors = [np.square(answers(one, pictures) - expected).sum() / np.square(expected).sum() for one in (plain, ours)]
    assert errors[1] < max(2 * errors[0], 1e-3)
