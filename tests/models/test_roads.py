"""Every family goes all the ways that a recipe can send it: training, pruning, ONNX, INT8, a folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlites.compression.pruning.structured import prune_structured
from mlites.compression.quantization.static import quantize_static_int8
from mlites.export import answers, check_parity, export_onnx
from mlites.models.build import build_model
from mlites.models.card import ModelCard
from mlites.models.checkpoint import save_model
from mlites.recipe import Training
from mlites.training.loop import TrainingData, train

SHAPE = (1, 16, 16)
FAMILIES = [
    {"family": "lenet"},
    {"family": "convnet", "channels": (16, 16), "strides": (2, 2)},
    {"family": "convnet", "channels": (16, 16), "strides": (2, 2), "separable_from": 1},
    {"family": "separable", "width": 0.3, "depth": 0.4, "resolution": 12},
    {"family": "mobilenet-v2", "width": 0.4, "depth": 0.3},
    {"family": "mobilenet-v3", "width": 0.5, "depth": 0.3},
    {"family": "efficientnet", "width": 0.5, "depth": 0.1},
]

READER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from mlites.models.checkpoint import load_model
rows = load_file(sys.argv[1])["rows"]
torch.set_num_threads(1)
with torch.no_grad():
    found = {folder: load_model(Path(folder))[0](rows) for folder in sys.argv[3:]}
save_file(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def data() -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    patterns = torch.randn(3, *SHAPE, generator=generator)
    inputs = 2 * patterns[labels] + torch.randn(96, *SHAPE, generator=generator)
    return TrainingData(inputs[:72], labels[:72], inputs[72:], labels[72:])


def test_every_family_trains_loses_channels_and_answers_the_same_in_onnx_int8_and_a_new_process(
    data: TrainingData, tmp_path: Path
) -> None:
    expected: dict[str, torch.Tensor] = {}
    rows = data.validation_inputs
    for options in FAMILIES:
        name = str(options["family"])
        module = build_model(options, SHAPE, 3, seed=1)
        losses = _train(module, data, learning_rate=0.01 if name == "lenet" else 0.05)  # lenet does not normalize
        assert losses[-1] < losses[0], f"{name}: the loss did not fall: {losses}"
        pruned, facts = prune_structured(module, SHAPE, 0.3)
        assert facts["macs_after"] < facts["macs_before"]
        assert not facts["kept_whole"]  # squeeze-and-excitation and depthwise layers included
        for kind, model in (("whole", module), ("pruned", pruned.eval())):
            folder = tmp_path / f"{name}-{kind}"
            card = ModelCard(
                form="torch",
                architecture=options,
                input_shape=SHAPE,
                classes=("a", "b", "c"),
                preprocessing={"scale": 1.0, "mean": [0.0], "deviation": [1.0]},
            )
            save_model(folder, model, card)
            with torch.no_grad():
                expected[str(folder)] = model(rows)
        exported = export_onnx(module, SHAPE)
        check_parity(exported, module, rows.numpy())
        quantized = answers(quantize_static_int8(exported, data.inputs.numpy()), rows.numpy())
        whole = expected[str(tmp_path / f"{name}-whole")].numpy()
        assert np.abs(quantized - whole).max() < 0.2 * np.abs(whole).max(), name
    save_file({"rows": rows}, tmp_path / "rows")
    arguments = [tmp_path / "rows", tmp_path / "answers", *expected]
    subprocess.run([sys.executable, "-c", READER, *map(str, arguments)], check=True, timeout=120)
    found = load_file(tmp_path / "answers")
    for folder, answer in expected.items():
        assert torch.equal(found[folder], answer), folder


def _train(module: torch.nn.Module, data: TrainingData, learning_rate: float) -> list[float]:
    options = Training(epochs=3, batch_size=24, learning_rate=learning_rate, precision="fp32")
    return [entry["train_loss"] for entry in train(module, data, options, seed=0, report=lambda _: None)]
