"""What quantization costs in accuracy, and calibration in memory.

    python tests/benchmarks/quantization.py memory [ROWS]
    python tests/benchmarks/quantization.py accuracy MODEL_FOLDER DATA_FOLDER

The first calibrates a ResNet-20 on 50,000 rows of 1x28x28, by each method in a process of its own, and prints the peak
resident memory. The second quantizes a trained model by every method and limit, and prints the drop on the test set.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch

from mlites.compression.quantization.quantize import quantize_model
from mlites.compression.quantization.speed import compare_speed
from mlites.compression.quantization.static import static_int8
from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.export import answers, export_onnx
from mlites.models.checkpoint import load_model
from mlites.models.resnet import ResNetClassifier
from mlites.recipe import Quantize

PASSES = (
    {},
    {"calibration": "entropy"},
    {"calibration": "percentile"},
    {"per_channel": False},
    {"reduce_range": True},
    {"sensitive_layers": 2},
    {"max_drop_points": 0.5},
    {"max_drop_points": 0.2},
    {"max_drop_points": 0.1},
    {"max_drop_points": 0.0},
    {"method": "dynamic"},
    {"method": "fp16"},
    {"method": "fp16", "max_drop_points": 0.1},
    {"method": "int4"},
)


def calibrate(path: str, method: str, count: int) -> None:
    """Calibrate once, and print this process's peak resident memory and time."""
    rows = np.random.default_rng(0).random((count, 1, 28, 28), np.float32)
    begin = time.monotonic()
    static_int8(onnx.load(path), rows, per_channel=True, calibration=method, reduce_range=False)  # type: ignore[arg-type]
    status = Path("/proc/self/status").read_text().splitlines()
    peak = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    print(
        f"{method:10} {count:,} rows ({rows.nbytes / 2**20:.0f} MiB of them in memory): peak {peak:.0f} MiB, "
        f"{time.monotonic() - begin:.0f} s",
        flush=True,
    )


def memory(count: int) -> None:
    """Every method in a process of its own."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "model.onnx")
        path.write_bytes(export_onnx(ResNetClassifier(1, 20, 16, 10).eval(), (1, 28, 28)).SerializeToString())
        for method in ("minmax", "entropy", "percentile"):
            subprocess.run([sys.executable, __file__, "calibrate", str(path), method, str(count)], check=True)


def accuracy(folder: str, data: str) -> None:
    """Every pass on one trained model."""
    module, card = load_model(Path(folder))
    dataset = Dataset.load(Path(data)).normalised_for(card.preprocessing)
    model = export_onnx(module, card.input_shape)
    (train, _), (inputs, labels), (rows, truth) = (dataset.arrays(one) for one in ("train", "validation", "test"))
    calibration = train[np.linspace(0, len(train) - 1, min(256, len(train))).round().astype(np.int64)]
    right = float((answers(model, rows).argmax(1) == truth).mean())
    print(f"float: {right:.2%} of {len(rows)} test rows, {len(labels)} validation rows")
    for one in PASSES:
        options = Quantize.model_validate({"pass": "quantize", **one})
        begin = time.monotonic()
        try:
            quantized, facts = quantize_model(
                model, options, calibration=calibration, validation_inputs=inputs, validation_labels=labels
            )
        except InputError as error:
            print(f"{options.label}: refused: {error}", flush=True)
            continue
        seconds = time.monotonic() - begin
        drop = 100 * (right - float((answers(quantized, rows).argmax(1) == truth).mean()))
        cost = f"{facts.get('evaluations', 0)}+{facts.get('sensitivity_evaluations', 0)} evaluations"
        print(
            f"{options.label}: test drop {drop:+.2f} points, validation {facts['drop_points_after']:+.2f} "
            f"(bound {facts['drop_bound_points_after']:.2f}), {len(facts['layers_kept_float'])} layers in float, "
            f"{cost}, {facts['size_bytes'] / facts['size_bytes_before']:.1%} of the size, "
            f"{compare_speed(model, quantized, rows[:8])}, took {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    verb, *words = sys.argv[1:] or ["memory"]
    if verb == "calibrate":
        calibrate(words[0], words[1], int(words[2]))
    elif verb == "accuracy":
        accuracy(*words)
    else:
        memory(int(words[0]) if words else 50_000)
