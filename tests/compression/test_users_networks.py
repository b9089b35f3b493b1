"""Networks that are not ours go through prune, distill and quantize, or are refused with the layer and the reason."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlites.compression import steps
from mlites.compression.cost import count_cost
from mlites.data.dataset import Dataset
from mlites.errors import InputError
from mlites.models.card import ModelCard, read_card
from mlites.models.checkpoint import load_model, save_model
from mlites.models.factory import TRUSTED
from mlites.recipe import QAT, Distill, Factorize, Prune, Quantize, Share, Training
from mlites.training.loop import TrainingData, train
from tests.compression import users_networks

BRIEF = Training(epochs=3, batch_size=32, precision="fp32", learning_rate=0.02)
NAMES = ("Inception", "Excited", "Patches")


@pytest.fixture(autouse=True, scope="module")
def trusted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRUSTED, ",".join(f"{users_networks.__name__}:{name}" for name in NAMES))
        yield


@pytest.fixture(scope="module", params=NAMES)
def taught(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder of a user's network that has learned the data."""
    torch.manual_seed(0)
    module: nn.Module = getattr(users_networks, request.param)()
    data = [torch.from_numpy(part) for name in ("train", "validation") for part in dataset.arrays(name)]
    options = Training(epochs=20, batch_size=16, precision="fp32", learning_rate=5e-3, optimizer="adamw")
    train(module, TrainingData(*data), options, 0)
    card = ModelCard(
        form="torch",
        architecture={"family": "factory", "factory": f"{users_networks.__name__}:{request.param}", "options": {}},
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing.to_json(),
    )
    folder = tmp_path_factory.mktemp("taught") / "model"
    save_model(folder, module, card)
    return folder


def accuracy(folder: Path) -> float:
    value: float = read_card(folder).provenance[-1]["metrics"]["validation_accuracy"]
    return value


def test_prune_distill_quantize_keeps_what_the_network_knows(taught: Path, dataset: Dataset, tmp_path: Path) -> None:
    prune = Prune(technique="prune", amount=0.4, round_to=4, training=BRIEF)
    steps.prune(taught, dataset, prune, 0, tmp_path / "pruned")
    before, after = (count_cost(load_model(one)[0], dataset.input_shape) for one in (taught, tmp_path / "pruned"))
    assert after["macs"] < 0.9 * before["macs"] and after["parameters"] < 0.95 * before["parameters"]
    distill = Distill(technique="distill", training=BRIEF, control=False)
    steps.distill(tmp_path / "pruned", taught, dataset, distill, 0, tmp_path / "recovered")
    assert read_card(tmp_path / "recovered").layers == read_card(tmp_path / "pruned").layers != {}
    steps.export(tmp_path / "recovered", dataset, tmp_path / "onnx")
    quantize = Quantize(technique="quantize", samples=64)
    steps.quantize(tmp_path / "onnx", dataset, quantize, tmp_path / "int8")
    assert accuracy(tmp_path / "int8") > accuracy(tmp_path / "onnx") - 0.05 > 0.8


@pytest.mark.parametrize(
    "options",
    [
        Prune(technique="prune", method="magnitude", amount=0.7, training=BRIEF),
        Prune(technique="prune", method="n-m", training=BRIEF),
        Factorize(technique="factorize", method="tucker", budget=0.6, training=BRIEF),
        Factorize(technique="factorize", method="svd", energy=0.9, training=BRIEF),
        Share(technique="share", bits=4, training=BRIEF),
        QAT(technique="qat", training=BRIEF),
    ],
    ids=lambda one: one.label,
)
def test_every_other_pass_works_or_says_which_layer_and_why(
    taught: Path, dataset: Dataset, tmp_path: Path, options: Prune | Factorize | Share | QAT
) -> None:
    step = {"prune": steps.prune, "factorize": steps.factorize, "share": steps.share, "qat": steps.qat}[
        options.technique
    ]
    module, _ = load_model(taught)
    try:
        step(taught, dataset, options, 0, tmp_path / "out")  # type: ignore[operator]
    except InputError as error:
        layers = [name for name, _ in module.named_modules() if name and "." not in name]
        assert any(layer in str(error) for layer in layers), error
        assert "\n" not in str(error) and len(str(error)) < 500
        return
    assert accuracy(tmp_path / "out") > 0.75
    if options.technique != "qat":
        assert same_in_a_fresh_process(tmp_path / "out", dataset)


def same_in_a_fresh_process(folder: Path, dataset: Dataset) -> bool:
    rows = torch.from_numpy(dataset.arrays("test")[0][:8])
    np.save(folder.parent / "rows.npy", rows.numpy())
    code = (
        "import sys, numpy as np, torch; from pathlib import Path; from mlites.models.checkpoint import load_model\n"
        "torch.set_num_threads(1); module, _ = load_model(Path(sys.argv[1]))\n"
        "with torch.no_grad(): np.save(sys.argv[3], module(torch.from_numpy(np.load(sys.argv[2]))).numpy())\n"
    )
    paths = [str(folder), str(folder.parent / "rows.npy"), str(folder.parent / "logits.npy")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=Path(__file__).parents[2])
    module, _ = load_model(folder)
    with torch.no_grad():
        return bool((module(rows).numpy() == np.load(paths[2])).all())
