"""Small networks as ONNX, rows, and a fresh process that runs a model's file."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mlites.export import export_onnx
from mlites.models.resnet import ResNetClassifier

Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


class Squeezed(nn.Module):
    """A mobile block: depthwise convolution, hard-swish, squeeze-and-excitation, residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.output = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        wide = nn.functional.hardswish(3 * self.expand(inputs))
        deep = nn.functional.hardswish(3 * self.depth(wide))
        gate = nn.functional.hardsigmoid(self.excite(self.squeeze(deep.mean((2, 3), keepdim=True)).relu()))
        return self.output((self.project(deep * gate) + wide).mean((2, 3)))


class Attentive(nn.Module):
    """Rows of a picture are words: one transformer layer over them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.output = nn.Linear(32, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.layer(self.embed(inputs.flatten(1, 2))).mean(1))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNetClassifier(1, 8, 8, 4),
    "mobile": Squeezed,
    "attention": Attentive,
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)),
}


@pytest.fixture(scope="session")
def networks() -> dict[str, onnx.ModelProto]:
    """Untrained networks for 8x8 pictures in 4 classes."""
    found = {}
    for name, build in BUILDERS.items():
        torch.manual_seed(0)
        module = build()
        with torch.no_grad():
            for _ in range(20):  # statistics of batch normalization
                module(torch.randn(32, 1, 8, 8))
        found[name] = export_onnx(module.eval(), (1, 8, 8))
    return found


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """150 rows (150, 1, 8, 8)."""
    return np.random.default_rng(0).normal(size=(150, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def in_fresh_process(tmp_path: Path) -> Run:
    """Writes a model to a file; a process that knows nothing else loads it and answers the rows."""
    program = (
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from mlites.inference import infer, open_session\n"
        "path = Path('model.onnx')\n"
        "np.save('logits.npy', infer(open_session(path, 1), path, np.load('rows.npy')))"
    )

    def run(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        np.save(tmp_path / "rows.npy", rows, allow_pickle=False)
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, env=environment, check=True)
        return np.asarray(np.load(tmp_path / "logits.npy", allow_pickle=False))

    return run
