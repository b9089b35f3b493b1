"""Deep Compression of LeNet-300-100 and LeNet-5 on Fashion-MNIST: how much smaller, and what is lost.

    python -m tests.benchmarks.deep_compression [mlp] [lenet]

Source: Han, Mao & Dally (2016), "Deep Compression", tables 1 to 4 (on MNIST: 40 and 39 times smaller, no loss).

Measured, medians of three seeds: LeNet-300-100 58.7 times smaller, 0.01 points lost; LeNet-5 52.6 times, 0.22 won.
"""

import dataclasses
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mlites.compression.distillation.distill import distill_module
from mlites.compression.pruning.prune import prune_module
from mlites.compression.pruning.rewinding import Origin
from mlites.compression.sharing.share import share_module
from mlites.data.sources.idx import read_idx
from mlites.export import answers, export_onnx
from mlites.models.build import build_model
from mlites.packing.pack import pack, unpack
from mlites.recipe import Distill, Prune, Share, Training
from mlites.training.loop import TrainingData, train

FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pictures
SHAPE = (1, 28, 28)
VALIDATION_ROWS = 5000
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """How one network is trained and compressed.

    Attributes:
        name: as the paper says it.
        architecture: as in a recipe.
        training: of the dense network, and of each round of pruning, which runs the same schedule again.
        amount: fraction of the weights to prune.
        rounds: of pruning.
        distill: training of the pruned network by the dense one.
        share: the pass.
    """

    name: str
    architecture: dict[str, Any]
    training: Training
    amount: float
    rounds: int
    distill: Training
    share: dict[str, Any]


SETTINGS = {
    "mlp": Setting(
        name="LeNet-300-100",
        architecture={"family": "mlp", "hidden": [300, 100]},
        training=Training(epochs=10, batch_size=128, learning_rate=0.1, weight_decay=1e-4, precision="fp32"),
        amount=0.94,
        rounds=3,
        distill=Training(epochs=20, batch_size=128, learning_rate=0.1, weight_decay=0, precision="fp32"),
        share={"bits": 4, "training": {"epochs": 2, "batch_size": 128, "learning_rate": 0.005, "precision": "fp32"}},
    ),
    "lenet": Setting(
        name="LeNet-5",
        architecture={"family": "lenet"},
        training=Training(epochs=5, batch_size=128, learning_rate=0.05, weight_decay=1e-4),
        amount=0.93,
        rounds=2,
        distill=Training(epochs=6, batch_size=128, learning_rate=0.05, weight_decay=0),
        share={"bits": 4, "conv_bits": 5, "training": {"epochs": 1, "batch_size": 128, "learning_rate": 0.003}},
    ),
}


@dataclass(frozen=True)
class Result:
    """Accuracy on the 10,000 test pictures, fraction; sizes in bytes."""

    dense: float
    pruned: float
    distilled: float
    shared: float
    dense_bytes: int
    shared_bytes: int
    packed_bytes: int

    @property
    def ratio(self) -> float:
        """The dense network's file to the packed one."""
        return self.dense_bytes / self.packed_bytes

    @property
    def loss_points(self) -> float:
        """Percentage points of accuracy lost."""
        return 100 * (self.dense - self.shared)


def compress(setting: Setting, seed: int, data: TrainingData, test: tuple[Tensor, Tensor]) -> Result:
    """Train one network and compress it; what is measured at the end is the file that unpacking gives."""

    def build() -> nn.Module:
        return build_model(setting.architecture, SHAPE, 10, seed)

    def measure(model: onnx.ModelProto) -> float:
        return float((answers(model, test[0].numpy()).argmax(1) == test[1].numpy()).mean())

    dense = build()
    train(dense, data, setting.training, seed)
    prune = Prune.model_validate(
        {
            "pass": "prune",
            "method": "magnitude",
            "amount": setting.amount,
            "schedule": "iterative",
            "rounds": setting.rounds,
            "retrain": "learning-rate-rewinding",
        }
    )
    origin = Origin(build, setting.training, seed)
    pruned, _, _ = prune_module(dense, data, prune, seed, input_shape=SHAPE, origin=origin)
    distill = Distill.model_validate(
        {"pass": "distill", "temperature": 2, "soft_weight": 0.7, "control": False, "training": setting.distill}
    )
    distilled, _, _ = distill_module(dense, pruned, data, distill, seed, keep_zeros=True)
    share = Share.model_validate({"pass": "share", **setting.share})
    shared, _, _ = share_module(distilled, data, share, seed)
    models = [export_onnx(one, SHAPE) for one in (dense, pruned, distilled, shared)]
    files = [models[0].SerializeToString(deterministic=True), models[-1].SerializeToString(deterministic=True)]
    packed = pack(files[1])
    models[-1] = onnx.ModelProto.FromString(unpack(packed))
    accuracies = [measure(one) for one in models]
    return Result(*accuracies, len(files[0]), len(files[1]), len(packed))


def rows(name: str) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 28, 28), normalised, and labels (n,)."""
    pictures = np.float32(read_idx(FOLDER / f"{name}-images-idx3-ubyte.gz")) / 255
    labels = np.int64(read_idx(FOLDER / f"{name}-labels-idx1-ubyte.gz"))
    return torch.from_numpy((pictures - MEAN) / DEVIATION)[:, None], torch.from_numpy(labels)


def main() -> None:
    """Print each seed's figures and the medians."""
    console = Console(width=120)
    inputs, labels = rows("train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, kept = order[:VALIDATION_ROWS], order[VALIDATION_ROWS:]
    data, test = TrainingData(inputs[kept], labels[kept], inputs[held], labels[held]), rows("t10k")
    for key in sys.argv[1:] or list(SETTINGS):
        setting, begin = SETTINGS[key], time.monotonic()
        results = list[Result]()
        for seed in SEEDS:
            results.append(compress(setting, seed, data, test))
            console.print(f"{setting.name}, seed {seed}: {results[-1]}")
        columns = ("seed", "dense", "pruned", "distilled", "shared", "loss, points", "FP32 ONNX", "packed", "ratio")
        table = Table(*columns, title=f"{setting.name}, {setting.amount:.0%} pruned, {time.monotonic() - begin:.0f} s")
        figures = [(*dataclasses.astuple(one), one.loss_points, one.ratio) for one in results]
        medians = [statistics.median(column) for column in zip(*figures, strict=True)]
        for name, row in zip([*map(str, SEEDS), "median"], [*figures, medians], strict=True):
            accuracies = [f"{value:.2%}" for value in row[:4]]
            sizes = [f"{value:,.0f}" for value in (row[4], row[6])]
            table.add_row(name, *accuracies, f"{row[7]:+.2f}", *sizes, f"{row[8]:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
