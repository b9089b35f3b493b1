import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.errors import InputError
from mlites.hardware.latency import RESOLUTION, SITTINGS, bootstrap_interval, measure_latency
from mlites.recipe import Hardware
from tests.hardware.networks import FEATURES, make_model, make_weights

Save = Callable[..., Path]
ROWS = np.ones((2, FEATURES), np.float32)


def products(count: int) -> onnx.ModelProto:
    """A chain of equal matrix products: time is proportional to their number."""
    weight = (np.eye(256) + 0.01).astype(np.float32) / 4
    nodes = [helper.make_node("MatMul", ["input", "first"], ["value0"])]
    nodes += [helper.make_node("MatMul", [f"value{index}", "weight"], [f"value{index + 1}"]) for index in range(count)]
    nodes += [helper.make_node("MatMul", [f"value{count}", "last"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.ones((FEATURES, 256), np.float32), "first"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.ones((256, 3), np.float32), "last"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_two_copies_of_a_file_measure_as_equal(save: Save):
    paths = [save(products(20), name) for name in ("one.onnx", "two.onnx")]
    first, second = measure_latency(paths, ROWS, threads=1, batch=16, seconds=1.5)
    assert (first.speedup, first.speedup_interval) == (1, (1, 1))
    low, high = second.speedup_interval
    assert low <= 1 <= high
    assert second.speedup == pytest.approx(1, abs=0.02)


def test_a_model_that_does_twice_the_work_takes_twice_the_time_in_either_place(save: Save):
    paths = [save(products(40), "long.onnx"), save(products(20), "short.onnx")]
    for order, expected in ((paths, 2), (paths[::-1], 0.5)):
        _, other = measure_latency(order, ROWS, threads=1, batch=16, seconds=0.5)
        assert other.speedup == pytest.approx(expected, rel=0.1)
        assert other.speedup_interval[0] <= other.speedup <= other.speedup_interval[1]


def test_every_call_is_kept_and_the_percentiles_are_theirs(save: Save):
    path = save(make_model(make_weights()))
    found = measure_latency([path, path, path], ROWS, threads=1, batch=1, seconds=0.1)
    assert len(found) == 3
    for latency in found:
        assert latency.samples_ms.ndim == 1 and len(latency.samples_ms) >= latency.rounds >= SITTINGS
        assert (latency.samples_ms > 0).all()
        ordered = np.sort(latency.samples_ms)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            at = share * (len(ordered) - 1)
            below, above = ordered[int(np.floor(at))], ordered[int(np.ceil(at))]
            assert below <= latency.percentiles_ms()[name] <= above


def test_a_model_slower_than_its_time_still_gets_one_round_in_each_sitting(save: Save):
    path = save(products(20))
    (only,) = measure_latency([path], ROWS, threads=1, batch=64, seconds=1e-6)
    assert only.rounds == SITTINGS


def test_the_batch_is_filled_with_the_rows_in_turn(save: Save):
    # the model takes the logarithm of a shape that only a batch of 5 has, so any other batch would fail
    model = make_model(make_weights())
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 3], np.int64), "shape"))
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["logits"]))
    (only,) = measure_latency([save(model)], ROWS, threads=1, batch=5, seconds=0.01)
    assert only.rounds >= SITTINGS


def test_garbage_collection_is_back_as_it_was_also_after_an_error(save: Save):
    with pytest.raises(InputError, match="cannot load it"):
        measure_latency([save(b"")], ROWS, threads=1, batch=1, seconds=0.1)
    assert gc.isenabled()
    gc.disable()
    try:
        measure_latency([save(make_model(make_weights()))], ROWS, threads=1, batch=1, seconds=0.01)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_interval_covers_the_true_ratio_where_sittings_differ():
    covered = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        sittings = [2 * np.exp(generator.normal(generator.normal(0, 0.01), 0.02, 40)) for _ in range(SITTINGS)]
        low, high = bootstrap_interval(sittings, seed)
        covered += low <= 2 <= high
    assert covered >= 38


def test_the_interval_of_ratios_without_noise_is_the_resolution_and_draws_are_seeded():
    low, high = bootstrap_interval([np.full(9, 3.0)] * SITTINGS, 0)
    assert (low, high) == pytest.approx((3 * (1 - RESOLUTION), 3 * (1 + RESOLUTION)))
    noisy = [np.random.default_rng(index).normal(1, 0.1, 30) for index in range(SITTINGS)]
    assert bootstrap_interval(noisy, 1) == bootstrap_interval(noisy, 1) != bootstrap_interval(noisy, 2)


def test_several_threads_can_be_measured(save: Save):
    hardware = Hardware(threads=2, seconds=0.05)
    path = save(products(5))
    found = measure_latency([path, path], ROWS, threads=hardware.threads, batch=32, seconds=hardware.seconds)
    assert found[1].rounds >= SITTINGS
