"""A quantized model that is slower than its input is called so."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlites.compression.quantization.speed import Speed, compare_speed


def network(products: int) -> onnx.ModelProto:
    """So many products with one matrix (256, 256) on end."""
    names = ["input", *(f"x{index}" for index in range(products - 1)), "logits"]
    nodes = [helper.make_node("MatMul", [one, "weight"], [other]) for one, other in pairwise(names)]
    rows = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 256])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 256])
    stored = numpy_helper.from_array(np.eye(256, dtype=np.float32), "weight")
    graph = helper.make_graph(nodes, "network", [rows], [logits], [stored])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_more_work_is_slower_and_less_is_faster() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    small, large = network(1), network(20)
    slower, faster = (compare_speed(*pair, rows, seconds=0.2) for pair in ((small, large), (large, small)))
    assert slower.is_slower and slower.speedup < 0.7 and str(slower).startswith("SLOWER than its input: 0.")
    assert not faster.is_slower and faster.speedup > 1.4 and str(faster).startswith("faster: ")


@pytest.mark.parametrize(
    ("interval", "words"), [((0.9, 1.1), "no faster than its input"), ((1.01, 1.2), "faster"), ((0.8, 0.99), "SLOWER")]
)
def test_the_interval_decides(interval: tuple[float, float], words: str) -> None:
    speed = Speed(1.0, interval)
    assert str(speed).startswith(words) and speed.is_slower == (interval[1] < 1)
