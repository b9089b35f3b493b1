import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.hardware.macs import count_work
from mlites.hardware.roofline import Peaks, measure_peaks, place, place_work
from tests.hardware.networks import make_model, make_weights

PEAKS = Peaks(
    fp32_gmacs_per_second=50.0,
    int8_gmacs_per_second=200.0,
    stream_gbytes_per_second=10.0,
    cached_gbytes_per_second=((1 << 20, 100.0), (1 << 24, 50.0)),
    call_us=5.0,
    node_us=0.5,
    threads=1,
)


def product(rows: int, inner: int, columns: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(np.ones((inner, columns), np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_the_limit_is_what_peaks_and_counts_say_by_hand():
    work = count_work(product(64, 256, 512), np.ones((64, 256), np.float32))
    found = place_work(work, 1.0, PEAKS)
    macs, size = 64 * 256 * 512, 4 * (64 * 256 + 256 * 512 + 64 * 512)
    assert (found.macs, found.bytes, found.kernels) == (macs, size, 1)
    assert found.intensity == pytest.approx(macs / size)
    assert found.compute_ms == pytest.approx(macs / 50e9 * 1e3)
    assert found.memory_ms == pytest.approx(size / 100e9 * 1e3)  # less than a mebibyte
    assert found.overhead_ms == pytest.approx(0.0055)
    assert found.limit_ms == found.compute_ms and found.fraction_of_limit == pytest.approx(found.compute_ms)
    assert found.bound == "compute" and found.to_json()["bound"] == "compute"


def test_integers_count_against_their_own_peak_and_large_weights_against_memory():
    work = dataclasses.replace(
        count_work(product(1, 8, 8), np.ones((1, 8), np.float32)),
        macs=3_000_000,
        int8_macs=2_000_000,
        bytes=40_000_000,
        footprint_bytes=40_000_000,
    )
    found = place_work(work, 10.0, PEAKS)
    assert found.compute_ms == pytest.approx(1e6 / 50e9 * 1e3 + 2e6 / 200e9 * 1e3)
    assert found.memory_ms == pytest.approx(4.0) and found.bound == "memory"
    assert found.fraction_of_limit == pytest.approx(0.4)


def test_a_small_net_is_bound_by_the_calls_of_its_operators():
    model = make_model(make_weights((8,) * 12))
    found = place(model, np.ones((3, 6), np.float32), 0.02, 1, PEAKS)
    assert found.bound == "overhead" and found.kernels >= 13
    assert found.overhead_ms == pytest.approx(0.005 + 0.0005 * found.kernels)


def test_a_batch_is_filled_from_the_rows_given():
    found = place(make_model(make_weights()), np.ones((3, 6), np.float32), 1.0, 8, PEAKS)
    assert found.macs == 8 * (6 * 16 + 16 * 3)


def test_measured_peaks_are_kept_and_bound_a_large_product_by_arithmetic():
    peaks = measure_peaks(1)
    assert measure_peaks(1) is peaks and peaks.to_json()["threads"] == 1
    assert peaks.call_us > 0 and peaks.int8_gmacs_per_second > 0
    found = place(product(384, 384, 384), np.ones((384, 384), np.float32), 1.0, 384, peaks)
    assert found.bound == "compute" and found.compute_ms > 5 * found.memory_ms
