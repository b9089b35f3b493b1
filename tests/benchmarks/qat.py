"""Quantization-aware training against static quantization: accuracy where weights share one scale, and latency.

`python tests/benchmarks/qat.py` trains a depthwise-separable network on Fashion-MNIST, whose channels differ so much in
range that one scale a weight ruins it, and times both files of a ResNet-8 side by side.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from mlites.compression.quantization.qat import train_quantized
from mlites.compression.quantization.static import quantize_static_int8
from mlites.data.sources import idx
from mlites.export import answers, compact_, export_onnx
from mlites.hardware.latency import measure_latency
from mlites.models.build import build_model
from mlites.recipe import QAT, Data, Hardware, Training
from mlites.training.loop import TrainingData, evaluate, train

FOLDER = Path("/usr/share/datasets/fashion-mnist")
ROWS, TEST_ROWS = 12_000, 4_000


def read() -> TrainingData:
    """The first rows of training and test set, standardized."""
    raw = idx.read(FOLDER, Data(source="idx", path=str(FOLDER)))
    assert raw.test is not None
    pieces = []
    for inputs, labels, count in ((raw.inputs, raw.labels, ROWS), (*raw.test, TEST_ROWS)):
        scaled = (inputs[:count].astype(np.float32) / 255 - 0.286) / 0.353
        pieces += [torch.from_numpy(scaled), torch.from_numpy(labels[:count].astype(np.int64))]
    return TrainingData(*pieces)


def compare_accuracy(data: TrainingData) -> None:
    """Float, static and trained, with one scale for each weight and for each channel."""
    module = build_model({"family": "separable", "width": 0.25}, (1, 28, 28), 10, 0)
    train(module, data, Training(epochs=5), 0)
    accuracy, _ = evaluate(module, data.validation_inputs, data.validation_labels)
    print(f"separable 0.25, float: {100 * accuracy:.2f}%")
    model, labels = export_onnx(module, (1, 28, 28)), data.validation_labels.numpy()
    for per_channel in (False, True):
        kind = "per channel" if per_channel else "per tensor"
        static = quantize_static_int8(model, data.inputs[:256].numpy(), per_channel=per_channel)
        accuracy = (answers(static, data.validation_inputs.numpy()).argmax(1) == labels).mean()
        print(f"{kind}: static {100 * accuracy:.2f}%", flush=True)
        options = QAT(technique="qat", per_channel=per_channel, training=Training(epochs=2, learning_rate=0.01))
        _, _, facts = train_quantized(module, data, options, 0, input_shape=(1, 28, 28))
        print(f"{kind}: trained {facts}", flush=True)


def compare_latency(data: TrainingData) -> None:
    """ResNet-8: the trained file's time against the static one's."""
    module = build_model({"family": "resnet", "depth": 8, "width": 16}, (1, 28, 28), 10, 0)
    small = TrainingData(*(part[:1000] for part in list(vars(data).values())[:4]))
    options = QAT(technique="qat", training=Training(epochs=1, learning_rate=0.01, precision="fp32"))
    trained, _, _ = train_quantized(module, small, options, 0, input_shape=(1, 28, 28))
    static = quantize_static_int8(export_onnx(module, (1, 28, 28)), small.inputs[:256].numpy())
    compact_(static)
    with tempfile.TemporaryDirectory() as work:
        paths = [Path(work, "static.onnx"), Path(work, "trained.onnx")]
        for path, model in zip(paths, (static, trained), strict=True):
            path.write_bytes(model.SerializeToString())
        found = measure_latency(paths, small.inputs.numpy(), Hardware(seconds=10))
    low, high = found[1].speedup_interval
    print(f"ResNet-8: static {found[0].percentiles_ms()['p50']:.4f} ms; trained {found[1].speedup:.3f} times as fast")
    print(f"95% interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    rows = read()
    compare_latency(rows)
    compare_accuracy(rows)
