import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.errors import InputError
from mlites.hardware.latency import (
    RESOLUTION,
    SITTINGS,
    Latency,
    bootstrap_interval,
    measure_latency,
    percentile_intervals,
)
from mlites.recipe import Hardware
from tests.hardware.networks import FEATURES, make_model, make_weights

Save = Callable[..., Path]
ROWS = np.ones((2, FEATURES), np.float32)
QUICK = Hardware(seconds=0.05, longest_seconds=0.3)


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
    first, second = measure_latency(paths, ROWS, Hardware(batch=16, seconds=1))
    assert (first.speedup, first.speedup_interval) == (1, (1, 1))
    low, high = second.speedup_interval
    assert low <= 1 <= high
    assert second.speedup == pytest.approx(1, abs=0.02)


def test_a_model_that_does_twice_the_work_takes_twice_the_time_in_either_place(save: Save):
    paths = [save(products(40), "long.onnx"), save(products(20), "short.onnx")]
    for order, expected in ((paths, 2), (paths[::-1], 0.5)):
        _, other = measure_latency(order, ROWS, QUICK.model_copy(update={"batch": 16}))
        assert other.speedup == pytest.approx(expected, rel=0.25)  # a busy machine is no reason to fail
        assert other.speedup_interval[0] <= other.speedup <= other.speedup_interval[1]


def test_every_call_is_kept_and_the_percentiles_are_theirs(save: Save):
    path = save(make_model(make_weights()))
    found = measure_latency([path, path, path], ROWS, QUICK)
    assert len(found) == 3
    for latency in found:
        assert latency.samples_ms.ndim == 1 and len(latency.samples_ms) >= latency.rounds >= SITTINGS
        assert (latency.samples_ms > 0).all()
        ordered = np.sort(latency.samples_ms)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            at = share * (len(ordered) - 1)
            below, above = ordered[int(np.floor(at))], ordered[int(np.ceil(at))]
            assert below <= latency.percentiles_ms()[name] <= above
            low, high = latency.percentile_intervals_ms()[name]
            assert ordered[0] <= low <= high <= ordered[-1]


def test_a_model_slower_than_its_time_still_gets_every_sitting(save: Save):
    path = save(products(20))
    (only,) = measure_latency([path], ROWS, Hardware(batch=64, seconds=1e-6))
    assert len(only.sittings) == len(only.calls) == SITTINGS and only.rounds >= SITTINGS
    assert sum(only.calls) == len(only.samples_ms)


def test_it_goes_on_until_it_is_decided_or_time_is_up(save: Save):
    path = save(make_model(make_weights()))
    looks: list[int] = []

    def decide(found: list[Latency]) -> bool:
        looks.append(len(found[0].sittings))
        return len(looks) == 3

    hardware = Hardware(seconds=0.01, longest_seconds=60, precision=0.9)
    (only,) = measure_latency([path], ROWS, hardware, decided=decide)
    assert looks == [16, 20, 25] and len(only.sittings) == 25 and only.narrow
    never = measure_latency([path], ROWS, Hardware(seconds=0.01, longest_seconds=0.4), decided=lambda _: False)
    assert len(never[0].sittings) >= SITTINGS and never[0].seconds >= 0.4


def test_an_interval_that_stays_wide_is_not_called_narrow(save: Save):
    path = save(make_model(make_weights()))
    hardware = Hardware(seconds=1e-6, longest_seconds=1e-6, precision=0.00501)
    found = measure_latency([path, path], ROWS, hardware)
    low, high = found[1].speedup_interval
    assert found[1].narrow == (high - low <= 2 * 0.00501 * found[1].speedup)
    assert found[0].narrow and not found[1].narrow


def test_threads_have_all_their_cores_again_afterwards(save: Save):
    allowed = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    path = save(make_model(make_weights()))
    hardware = Hardware(seconds=0.01, longest_seconds=60, precision=0.9)
    measure_latency([path], ROWS, hardware, decided=lambda _: seen.append(os.sched_getaffinity(0)) is None)
    assert seen == [allowed] and os.sched_getaffinity(0) == allowed


def test_a_model_of_a_fixed_batch_is_told_apart_from_one_that_fails(save: Save):
    fixed = save(make_model(make_weights(), batch=4))
    with pytest.raises(InputError, match=r"takes 4 rows at a time, hardware\.batch is 1"):
        measure_latency([fixed], ROWS, QUICK)
    assert measure_latency([fixed], ROWS, QUICK.model_copy(update={"batch": 4}))[0].rounds >= SITTINGS
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot run it on 1 rows of shape \(9,\): "):
        measure_latency([save(make_model(make_weights()))], np.ones((1, 9), np.float32), QUICK)


def test_inputs_and_outputs_may_have_any_names(save: Save):
    model = make_model(make_weights(), name="pixels")
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    assert measure_latency([save(model)], ROWS, QUICK)[0].rounds >= SITTINGS


def test_the_batch_is_filled_with_the_rows_in_turn(save: Save):
    # the model takes the logarithm of a shape that only a batch of 5 has, so any other batch would fail
    model = make_model(make_weights())
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 3], np.int64), "shape"))
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["logits"]))
    (only,) = measure_latency([save(model)], ROWS, Hardware(batch=5, seconds=0.01))
    assert only.rounds >= SITTINGS


def test_garbage_collection_is_back_as_it_was_also_after_an_error(save: Save):
    with pytest.raises(InputError, match="cannot load it"):
        measure_latency([save(b"")], ROWS, QUICK)
    assert gc.isenabled()
    gc.disable()
    try:
        measure_latency([save(make_model(make_weights()))], ROWS, QUICK)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_interval_covers_the_true_ratio_where_sittings_differ():
    covered = 0
    for seed in range(200):
        ratios = 2 * np.exp(np.random.default_rng(seed).standard_t(3, SITTINGS) * 0.01)  # long tails
        speedup, (low, high) = bootstrap_interval(ratios, seed)
        covered += low <= 2 <= high
        assert low <= speedup <= high
    assert covered >= 190


def test_the_interval_of_ratios_without_noise_is_the_resolution_and_draws_are_seeded():
    speedup, (low, high) = bootstrap_interval(np.full(SITTINGS, 3.0), 0)
    assert (low, speedup, high) == pytest.approx((3 * (1 - RESOLUTION), 3, 3 * (1 + RESOLUTION)))
    noisy = np.random.default_rng(0).normal(1, 0.1, SITTINGS)
    assert bootstrap_interval(noisy, 1) == bootstrap_interval(noisy, 1) != bootstrap_interval(noisy, 2)


def test_one_sitting_gone_wrong_does_not_move_the_speedup():
    ratios = np.full(SITTINGS, 1.5)
    ratios[3] = 40
    assert bootstrap_interval(ratios, 0)[0] == pytest.approx(1.5)


def test_intervals_of_percentiles_cover_them_where_sittings_differ():
    covered = np.zeros(3)
    for seed in range(100):
        generator = np.random.default_rng(seed)
        sittings = [generator.exponential(size=50) * np.exp(generator.normal(0, 0.05)) for _ in range(30)]
        bounds = percentile_intervals(sittings, [0.5, 0.95, 0.99], seed)
        truth = -np.log([0.5, 0.05, 0.01])  # of the exponential distribution
        covered += [low <= value <= high for (low, high), value in zip(bounds, truth, strict=True)]
    assert (covered >= 85).all()


def test_intervals_of_percentiles_are_those_of_a_plain_bootstrap():
    generator = np.random.default_rng(3)
    sittings = [
        generator.gamma(2, generator.uniform(0.9, 1.1), size=int(generator.integers(20, 60))) for _ in range(20)
    ]
    (found,) = percentile_intervals(sittings, [0.95], 0)
    drawn = [
        np.quantile(np.concatenate([sittings[index] for index in generator.integers(20, size=20)]), 0.95)
        for _ in range(2000)
    ]
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=0.03)


def test_several_threads_can_be_measured(save: Save):
    path = save(products(5))
    found = measure_latency([path, path], ROWS, QUICK.model_copy(update={"threads": 2, "batch": 32}))
    assert found[1].rounds >= SITTINGS
