"""A quantized model that is slower than its input is called so."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mlites.compression.quantization.speed import Speed, compare_speed
from mlites.export import export_onnx


def network(width: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    return export_onnx(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4)), (64,))


def test_more_work_is_slower_and_less_is_faster() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    small, large = network(16), network(8192)
    slower, faster = (compare_speed(*pair, rows, seconds=0.2) for pair in ((small, large), (large, small)))
    assert slower.is_slower and slower.speedup < 0.7 and str(slower).startswith("SLOWER than its input: 0.")
    assert not faster.is_slower and faster.speedup > 1.4 and str(faster).startswith("faster: ")


@pytest.mark.parametrize(
    ("interval", "words"), [((0.9, 1.1), "no faster than its input"), ((1.01, 1.2), "faster"), ((0.8, 0.99), "SLOWER")]
)
def test_the_interval_decides(interval: tuple[float, float], words: str) -> None:
    speed = Speed(1.0, interval)
    assert str(speed).startswith(words) and speed.is_slower == (interval[1] < 1)
