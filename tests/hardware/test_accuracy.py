from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.hardware.accuracy import Answers, agreement, class_drops, drop, evaluate, softmax
from mlites.recipe import Hardware
from tests.hardware.networks import CLASSES, FEATURES, forward, make_model, make_weights

Save = Callable[..., Path]


def test_accuracy_and_confusion_equal_those_of_scikit_learn(save: Save, dataset: Dataset):
    weights = make_weights(seed=3)  # answers wrongly most of the time
    inputs, labels = dataset.arrays("test")
    answers = evaluate(save(make_model(weights)), inputs, labels, Hardware(), classes=CLASSES)
    expected = forward(weights, inputs)
    np.testing.assert_allclose(answers.logits, expected, rtol=1e-4, atol=1e-4)
    assert answers.accuracy == accuracy_score(labels, expected.argmax(axis=1))
    np.testing.assert_array_equal(answers.confusion, confusion_matrix(labels, expected.argmax(axis=1)))


def test_a_class_without_test_rows_keeps_its_row_of_zeros(save: Save):
    inputs = np.ones((2, FEATURES), np.float32)
    answers = evaluate(save(make_model(make_weights())), inputs, np.array([0, 1]), Hardware(), classes=CLASSES)
    assert answers.confusion.shape == (CLASSES, CLASSES)
    assert answers.confusion.sum(axis=1).tolist() == [1, 1, 0]
    assert answers.per_class[2] is None
    assert class_drops(answers, answers)[2] is None


def random_answers(rows: int, classes: int, seed: int, labels_seed: int = 0) -> Answers:
    labels = np.random.default_rng(labels_seed).integers(classes, size=rows)
    logits = np.random.default_rng(seed).normal(0, 2, (rows, classes)) + 2 * np.eye(classes)[labels]
    return Answers(logits.astype(np.float32), labels)


def test_recall_of_each_class_equals_that_of_scikit_learn():
    answers = random_answers(500, 7, seed=1)
    expected = recall_score(answers.labels, answers.logits.argmax(axis=1), average=None)
    np.testing.assert_allclose(answers.per_class, expected)


def logits_of(confidences: list[float]) -> NDArray[np.float32]:
    """Two classes, of which the first has these probabilities."""
    return np.array([[np.log(p / (1 - p)), 0.0] for p in confidences], np.float32)


def test_the_calibration_error_of_six_rows_is_the_one_found_by_hand():
    # bins of 1/15: (0.6, 0.667] holds 0.62 and 0.66, (0.867, 0.933] holds 0.9 three times, (0.933, 1] holds 0.99
    answers = Answers(logits_of([0.62, 0.66, 0.9, 0.9, 0.9, 0.99]), np.array([0, 1, 0, 0, 1, 0]))
    by_hand = 2 / 6 * abs(0.5 - 0.64) + 3 / 6 * abs(2 / 3 - 0.9) + 1 / 6 * abs(1 - 0.99)
    assert answers.ece == pytest.approx(by_hand, abs=1e-6)
    assert [one.rows for one in answers.calibration] == [2, 3, 1]
    assert [one.confidence for one in answers.calibration] == pytest.approx([0.64, 0.9, 0.99])
    assert [one.accuracy for one in answers.calibration] == pytest.approx([0.5, 2 / 3, 1])


def test_the_calibration_error_equals_the_definition_row_by_row():
    answers = random_answers(3000, 5, seed=2)
    chances = torch.softmax(torch.from_numpy(answers.logits).double(), dim=1).numpy()
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == answers.labels
    expected = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        rows = (confidence > low) & (confidence <= high)
        if rows.any():
            expected += rows.mean() * abs(right[rows].mean() - confidence[rows].mean())
    assert answers.ece == pytest.approx(expected, rel=1e-9)


def test_rows_answered_with_certainty_fall_into_the_last_bin_and_huge_logits_are_no_overflow():
    answers = Answers(np.array([[1e30, 0], [0, 1e4]], np.float32), np.array([0, 0]))
    assert softmax(answers.logits).tolist() == [[1, 0], [0, 1]]
    (last,) = answers.calibration
    assert (last.rows, last.confidence, last.accuracy, answers.ece) == (2, 1.0, 0.5, 0.5)


def test_losses_count_the_rows_that_one_model_alone_has_right():
    own, reference = random_answers(400, 4, seed=3), random_answers(400, 4, seed=4)
    ours, theirs = (one.logits.argmax(axis=1) == one.labels for one in (own, reference))
    whole = drop(own, reference)
    assert whole.points == pytest.approx(100 * (reference.accuracy - own.accuracy))
    assert (whole.rows, whole.lost, whole.won) == (400, (theirs & ~ours).sum(), (ours & ~theirs).sum())
    parts = class_drops(own, reference)
    for index, part in enumerate(parts):
        assert part is not None
        recalls = reference.per_class[index], own.per_class[index]
        assert part.points == pytest.approx(100 * (recalls[0] - recalls[1]))
    assert [sum(getattr(part, key) for part in parts) for key in ("rows", "lost", "won")] == [
        400,
        whole.lost,
        whole.won,
    ]


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
        evaluate(path, inputs, labels, Hardware(), classes=CLASSES)
