"""A network whose layers share weights is a plain one with few values, and stays so when it is saved."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mlites.compression.pruning.magnitude import prune_magnitude
from mlites.compression.sharing.share import share_module
from mlites.compression.sharing.weight_sharing import cluster
from mlites.errors import InputError
from mlites.export import export_onnx
from mlites.models.build import build_model
from mlites.models.card import ModelCard
from mlites.models.checkpoint import save_model
from mlites.packing.pack import pack, unpack
from mlites.recipe import Share, Training
from mlites.training.loop import TrainingData, evaluate, train

ARCHITECTURE = {"family": "convnet", "channels": [8, 12], "strides": [1, 2]}
OPTIONS = Share.model_validate(
    {"pass": "share", "bits": 2, "conv_bits": 3, "training": {"epochs": 2, "batch_size": 20, "learning_rate": 0.02}}
)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(3, 1, 8, 8, generator=generator)
    labels = torch.arange(120) % 3
    inputs = patterns[labels] + 0.5 * torch.randn(120, 1, 8, 8, generator=generator)
    return TrainingData(inputs[:90], labels[:90], inputs[90:], labels[90:])


@pytest.fixture(scope="module")
def sparse() -> nn.Module:
    return prune_magnitude(build_model(ARCHITECTURE, (1, 8, 8), 3), 0.5)[0].eval()


def distinct(weight: torch.Tensor) -> int:
    return len(weight[weight != 0].unique())


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in module.named_parameters() if value.dim() > 1}


def test_each_layer_has_at_most_its_bits_of_values_and_its_zeros(sparse: nn.Module, data: TrainingData) -> None:
    before = {name: value.clone() for name, value in sparse.state_dict().items()}
    shared, history, facts = share_module(sparse, data, OPTIONS, 0)
    assert len(history) == 2
    assert all(torch.equal(value, before[name]) for name, value in sparse.state_dict().items())
    for name, weight in weights(shared).items():
        bits = 3 if weight.dim() == 4 else 2
        assert facts["layers"][name]["bits"] == bits
        assert facts["layers"][name]["distinct_values"] == distinct(weight) <= 2**bits
        assert torch.equal(weight == 0, before[name] == 0)
        assert not torch.signbit(weight[weight == 0]).any()
    assert list(shared.state_dict()) == list(before)
    assert all(not parameter.requires_grad or parameter.grad is None for parameter in shared.parameters())
    accuracy = evaluate(shared, data.validation_inputs, data.validation_labels)[0]
    assert facts["validation_accuracy"] == accuracy
    assert facts["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_error_in_the_facts_is_that_of_the_values_before_tuning(sparse: nn.Module, data: TrainingData) -> None:
    _, _, facts = share_module(sparse, data, OPTIONS, 0)
    for name, weight in weights(sparse).items():
        kept = weight[weight != 0].double().numpy()
        found = cluster(kept, 8 if weight.dim() == 4 else 4)
        expected = float(((kept - found.centroids[found.assignments]) ** 2).sum() / (kept**2).sum())
        assert facts["layers"][name]["relative_squared_error"] == pytest.approx(expected, rel=1e-3)


def test_tuning_lowers_the_loss(sparse: nn.Module, data: TrainingData) -> None:
    _, history, facts = share_module(sparse, data, OPTIONS, 0)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert facts["validation_accuracy"] >= facts["validation_accuracy_before_tuning"]


def test_a_killed_run_goes_on_to_the_same_weights(sparse: nn.Module, data: TrainingData, tmp_path: Path) -> None:
    whole, _, _ = share_module(sparse, data, OPTIONS, 0)
    stopped = dataclasses.replace(data, inputs=Interrupted(data.inputs, 90 // 20 + 3))
    with pytest.raises(KeyboardInterrupt):
        share_module(sparse, stopped, OPTIONS, 0, checkpoint=tmp_path / "state")
    assert (tmp_path / "state").is_file()
    resumed, history, _ = share_module(sparse, data, OPTIONS, 0, checkpoint=tmp_path / "state")
    assert len(history) == 2
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


class Interrupted(torch.Tensor):
    """Rows that can be taken so many times, as if the process were killed then."""

    left: int

    @staticmethod
    def __new__(cls, rows: torch.Tensor, left: int) -> "Interrupted":
        made = rows.as_subclass(cls)
        made.left = left
        return made

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.as_subclass(torch.Tensor)[index]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_in_either_precision_leaves_few_values(data: TrainingData, sparse: nn.Module, precision: str) -> None:
    training = OPTIONS.training.model_copy(update={"precision": precision, "epochs": 1})
    shared, _, _ = share_module(sparse, data, OPTIONS.model_copy(update={"training": training}), 0)
    for weight in weights(shared).values():
        assert weight.dtype == torch.float32
        assert distinct(weight) <= 8


def test_shared_values_and_biases_take_sixteen_bits(sparse: nn.Module, data: TrainingData) -> None:
    shared, _, _ = share_module(sparse, data, OPTIONS, 0)
    for parameter in shared.parameters():
        assert torch.equal(parameter, parameter.bfloat16().float())


def test_one_weight_in_two_layers_is_refused(data: TrainingData) -> None:
    tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    tied[2].weight = tied[1].weight
    with pytest.raises(
        InputError, match=r"^share: 1.weight and 2.weight are one weight, which cannot be shared twice$"
    ):
        share_module(tied, data, OPTIONS, 0)


def test_recurrent_weights_are_left_as_they_are(data: TrainingData) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.cell(inputs[:, 0])[0][:, -1])
            return result

    shared, _, facts = share_module(Reader(), data, OPTIONS, 0)
    assert set(facts["layers"]) == {"head.weight"}
    assert distinct(shared.get_parameter("cell.weight_ih_l0").detach()) == 144


FRESH = """
import sys
from pathlib import Path
import torch
from mlites.models.checkpoint import load_model
module, _ = load_model(Path(sys.argv[1]))
rows = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
with torch.no_grad():
    sys.stdout.buffer.write(module(rows).numpy().tobytes())
counts = [len(w[w != 0].unique()) for w in module.parameters() if w.dim() > 1]
print(*counts, file=sys.stderr)
"""


def test_reloaded_in_a_fresh_process_it_answers_alike_and_has_as_few_values(
    sparse: nn.Module, data: TrainingData, tmp_path: Path
) -> None:
    shared, _, facts = share_module(sparse, data, OPTIONS, 0)
    card = ModelCard(
        form="torch", architecture=ARCHITECTURE, input_shape=(1, 8, 8), classes=("a", "b", "c"), preprocessing={}
    )
    save_model(tmp_path / "model", shared, card)
    fresh = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path / "model")], capture_output=True, check=True)
    rows = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
    with torch.no_grad():
        assert fresh.stdout == shared(rows).numpy().tobytes()
    counts = [int(count) for count in fresh.stderr.split()]
    assert counts == [layer["distinct_values"] for layer in facts["layers"].values()]


def test_shared_network_packs_to_less_than_a_pruned_one(data: TrainingData) -> None:
    network = prune_magnitude(build_model({"family": "mlp", "hidden": [64]}, (1, 8, 8), 3), 0.8)[0].eval()
    shared, _, _ = share_module(network, data, OPTIONS, 0)
    files = [export_onnx(one, (1, 8, 8)).SerializeToString() for one in (network, shared)]
    pruned_bytes, shared_bytes = (len(pack(one)) for one in files)
    assert unpack(pack(files[1])) == files[1]
    assert shared_bytes < 0.6 * pruned_bytes


def test_values_shared_behind_batch_normalization_are_those_of_the_exported_file(data: TrainingData) -> None:
    network = build_model({"family": "resnet", "depth": 8, "width": 8}, (1, 8, 8), 3)
    train(network, data, Training(epochs=3, batch_size=30, precision="fp32"), 0)
    shared, _, facts = share_module(network, data, OPTIONS, 0)
    model = export_onnx(shared, (1, 8, 8))
    found = [numpy_helper.to_array(one) for one in model.graph.initializer]
    counts = [len(np.unique(one)) for one in found if one.ndim == 4]
    assert len(counts) == 9
    assert max(counts) <= 8
    assert facts["validation_accuracy"] >= facts["validation_accuracy_before"] - 0.1
