from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sklearn.metrics import accuracy_score, confusion_matrix

from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.hardware.accuracy import agreement, evaluate
from tests.hardware.networks import CLASSES, FEATURES, forward, make_model, make_weights

Save = Callable[..., Path]


def test_accuracy_and_confusion_equal_those_of_scikit_learn(save: Save, dataset: Dataset):
    weights = make_weights(seed=3)  # answers wrongly most of the time
    inputs, labels = dataset.arrays("test")
    answers = evaluate(save(make_model(weights)), inputs, labels, classes=CLASSES, threads=1)
    expected = forward(weights, inputs)
    np.testing.assert_allclose(answers.logits, expected, rtol=1e-4, atol=1e-4)
    assert answers.accuracy == accuracy_score(labels, expected.argmax(axis=1))
    np.testing.assert_array_equal(answers.confusion, confusion_matrix(labels, expected.argmax(axis=1)))


def test_a_class_without_test_rows_keeps_its_row_of_zeros(save: Save):
    inputs = np.ones((2, FEATURES), np.float32)
    answers = evaluate(save(make_model(make_weights())), inputs, np.array([0, 1]), classes=CLASSES, threads=1)
    assert answers.confusion.shape == (CLASSES, CLASSES)
    assert answers.confusion.sum(axis=1).tolist() == [1, 1, 0]


def test_agreement_is_the_share_of_equal_classes():
    ours = np.eye(4, 3, dtype=np.float32)
    theirs = np.array([[9, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]], np.float32)
    assert agreement(ours, theirs) == 0.75
    assert agreement(ours, ours) == 1


def test_a_model_whose_number_of_classes_shows_only_when_it_runs_is_found_out(save: Save):
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], axes=[0], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["keep"]),
        helper.make_node("Compress", ["input", "keep"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "width"])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    path = save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    inputs, labels = np.ones((4, FEATURES), np.float32), np.zeros(4, np.int64)
    inputs[:, 0] = -1
    with pytest.raises(InputError, match=r"answers with 5 classes; the data has 3"):
        evaluate(path, inputs, labels, classes=CLASSES, threads=1)
