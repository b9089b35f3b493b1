"""Layers return to float until the limit holds, whatever it is, in few evaluations."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binom

from mlites.compression.quantization.rollback import Drop, Z, paired_drop, roll_back, smallest_limit_points
from mlites.compression.quantization.scheme import Layer, Scheme
from mlites.compression.quantization.static import static_int8
from mlites.export import answers

CLASSES, ROWS = 4, 400


def noisy_scheme(noise: list[float]) -> tuple[onnx.ModelProto, Scheme]:
    """A linear model of which "layer" i, when quantized, disturbs logits as if its step were ``noise[i]``."""
    weight = np.eye(CLASSES, dtype=np.float32)

    def model_of(scale: float) -> onnx.ModelProto:
        nodes = [helper.make_node("MatMul", ["input", "w"], ["x"]), helper.make_node("Div", ["x", "s"], ["y"]),
                 helper.make_node("Round", ["y"], ["z"]), helper.make_node("Mul", ["z", "s"], ["logits"])]  # fmt: skip
        graph = helper.make_graph(
            nodes,
            "steps",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CLASSES])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32([scale]), "s")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    layers = tuple(Layer(f"n{index}", f"MatMul {index + 1}", 10) for index in range(len(noise)))

    def build(kept: frozenset[str]) -> onnx.ModelProto:
        total = math.sqrt(sum(one**2 for layer, one in zip(layers, noise, strict=True) if layer.name not in kept))
        return model_of(total + 1e-4)

    return model_of(1e-4), Scheme(layers, build, {})


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(ROWS) % CLASSES
    inputs = generator.normal(size=(ROWS, CLASSES)) * 0.4 + np.eye(CLASSES)[labels]
    return inputs.astype(np.float32), labels


def test_the_bound_is_that_of_a_paired_difference() -> None:
    before, after = np.ones(1000, bool), np.ones(1000, bool)
    after[:12] = False
    before[20:23] = False
    found = paired_drop(before, after)
    difference = before.astype(float) - after
    assert found.points == pytest.approx(100 * difference.mean())
    deviation = math.sqrt(1000 * difference.var() + 1) / 1000
    assert found.bound_points == pytest.approx(100 * (difference.mean() + Z * deviation))


def test_equal_answers_on_few_rows_prove_little() -> None:
    for rows in (180, 5000):
        right = np.arange(rows) % 3 > 0
        assert paired_drop(right, right) == Drop(0.0, pytest.approx(smallest_limit_points(rows)))
    missed = 1 - smallest_limit_points(180) / 100  # of drops so large, this part shows in 180 rows
    assert 1 - missed**180 > 0.9


def test_a_true_drop_above_the_limit_is_accepted_once_in_a_hundred() -> None:
    rows, lost, gained = 5000, 0.006, 0.002  # a true drop of 0.4 points
    generator = np.random.default_rng(0)
    bounds = []
    for _ in range(2000):
        draw = generator.random(rows)
        before, after = draw >= gained, (draw < gained) | (draw >= gained + lost)
        bounds.append(paired_drop(before, after).bound_points)
    exceeded = int((np.array(bounds) < 0.4).sum())
    assert exceeded <= binom.ppf(0.9999, 2000, 0.02)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 100.0])
@pytest.mark.parametrize("noise", [[2.0, 0.1, 0.2, 1.0, 0.05, 0.4], [0.3] * 5, [3.0]])
def test_the_limit_is_never_exceeded(rows: tuple[np.ndarray, np.ndarray], noise: list[float], limit: float) -> None:
    inputs, labels = rows
    model, scheme = noisy_scheme(noise)
    logits = answers(model, inputs)
    done = roll_back(model, scheme, logits, inputs, labels, limit)
    assert done.after.points <= done.after.bound_points <= limit
    accuracies = [100 * float((one.argmax(1) == labels).mean()) for one in (logits, answers(done.model, inputs))]
    assert accuracies[0] - accuracies[1] == pytest.approx(done.after.points)
    assert done.evaluations <= 2 + math.ceil(math.log2(len(noise))) + 4
    assert done.sensitivity_evaluations in (0, len(noise))
    assert (len(done.kept) == 0) == (done.before.bound_points <= limit)


def test_the_worst_layers_return_first(rows: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = rows
    model, scheme = noisy_scheme([0.01, 3.0, 0.02, 0.01, 2.0, 0.01])
    done = roll_back(model, scheme, answers(model, inputs), inputs, labels, 1.0)
    assert [layer.label for layer in done.kept] == ["MatMul 2", "MatMul 5"]
    assert done.before.points > 10 and done.evaluations <= 6


def test_a_limit_that_nothing_meets_returns_the_model_itself(rows: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = rows
    model, scheme = noisy_scheme([3.0, 3.0])
    done = roll_back(model, scheme, answers(model, inputs), inputs, labels, 0.5)
    assert done.model is model and done.kept == scheme.layers and done.after == Drop(0.0, 0.0)


def test_a_large_layer_that_does_no_harm_is_tried_in_integers_again(rows: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, labels = rows
    model, plain = noisy_scheme([0.9, 0.95, 3.0, 0.01, 0.01, 0.01])
    layers = tuple(Layer(one.name, one.label, 99 if one.name == "n1" else 1) for one in plain.layers)
    scheme = Scheme(layers, plain.build, {})
    logits = answers(model, inputs)
    alone = paired_drop(
        logits.argmax(1) == labels, answers(plain.build(frozenset({"n0", "n2"})), inputs).argmax(1) == labels
    ).bound_points
    done = roll_back(model, scheme, logits, inputs, labels, alone)
    assert {layer.name for layer in done.kept} <= {"n0", "n2"}


def test_a_real_network_obeys(networks: dict[str, onnx.ModelProto], pictures: np.ndarray) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(networks["resnet"])
    logits = answers(model, pictures)
    scheme = static_int8(model, pictures, per_channel=False, calibration="minmax", reduce_range=True)
    labels = logits.argmax(1)
    for limit in (0.0, 2.0):
        done = roll_back(model, scheme, logits, pictures, labels, limit)
        agreement = (answers(done.model, pictures).argmax(1) == labels).mean()
        assert 100 * (1 - agreement) <= limit
