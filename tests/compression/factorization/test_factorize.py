"""Networks are factorized, tuned, saved and factorized again."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from mlites.compression.cost import count_cost
from mlites.compression.factorization.factorize import factorize_layers, factorize_module
from mlites.compression.pruning.structured import prune_structured
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.models.card import ModelCard
from mlites.models.checkpoint import load_model, save_model
from mlites.recipe import MLP, Factorize, ResNet, Training
from mlites.training.loop import TrainingData, evaluate

SHAPE = (1, 8, 8)
RESNET = ResNet(family="resnet", depth=8, width=8)
TUNING = Training(epochs=2, batch_size=16, learning_rate=0.01, precision="fp32")


def options(method: str = "tucker", **others: Any) -> Factorize:
    return Factorize.model_validate({"pass": "factorize", "method": method, "training": TUNING} | others)


@pytest.fixture
def resnet() -> nn.Module:
    """With statistics in its normalization layers, as training would leave them."""
    module = build_model(RESNET, SHAPE, 3, seed=0)
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = 0.1 * torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.5
    return module.eval()


@pytest.fixture(scope="module")
def data() -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(3, *SHAPE, generator=generator)
    labels = torch.arange(48) % 3
    rows = patterns[labels] + 0.5 * torch.randn(48, *SHAPE, generator=generator)
    return TrainingData(rows[:32], labels[:32], rows[32:], labels[32:])


def card_of(architecture: MLP | ResNet, shape: tuple[int, ...] = SHAPE) -> ModelCard:
    return ModelCard(
        form="torch",
        architecture=architecture.model_dump(mode="json"),
        input_shape=shape,
        classes=("a", "b", "c"),
        preprocessing={"scale": 1.0, "mean": [0.0], "std": [1.0]},
    )


def check_fresh_process(folder: Path, modules: dict[str, tuple[nn.Module, ModelCard]]) -> None:
    """Save each, and have another process load them and compare the outputs bit for bit."""
    torch.manual_seed(2)
    for name, (module, card) in modules.items():
        rows = torch.randn(4, *card.input_shape)
        save_model(folder / name, module, card)
        with torch.no_grad():
            (folder / f"{name}.rows").write_bytes(save({"rows": rows, "logits": module(rows)}))
    program = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import load_file\n"
        "from mlites.models.checkpoint import load_model\n"
        "torch.set_num_threads(1)\n"
        "for name in sys.argv[1:]:\n"
        "    module, _ = load_model(Path(name)); kept = load_file(name + '.rows')\n"
        "    with torch.no_grad(): print(name, torch.equal(module(kept['rows']), kept['logits']))\n"
        "print('tensorly' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", program, *modules],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [*(f"{name} True" for name in modules), "False"]


def test_each_method_reloads_in_a_fresh_process(resnet: nn.Module, tmp_path: Path) -> None:
    mlp = MLP(family="mlp", hidden=(32, 32))
    perceptron = build_model(mlp, (24,), 3, seed=0).eval()
    rows, features = torch.randn(1, *SHAPE), torch.randn(1, 24)
    modules = {
        method: (factorize_layers(resnet, rows, options(method), 0)[0], card_of(RESNET))
        for method in ("tucker", "cp", "depthwise-separable")
    }
    modules["svd"] = (factorize_layers(perceptron, features, options("svd", budget=0.8), 0)[0], card_of(mlp, (24,)))
    check_fresh_process(tmp_path, modules)


def test_chains_with_pruning_and_with_itself_reload(resnet: nn.Module, tmp_path: Path) -> None:
    rows = torch.randn(1, *SHAPE)
    once, _ = factorize_layers(resnet, rows, options("tucker", budget=0.7), 0)
    twice, facts = factorize_layers(once, rows, options("cp", budget=0.7), 0)
    thrice, _ = factorize_layers(twice, rows, options("svd", budget=0.9), 0)
    pruned, _ = prune_structured(once, SHAPE, 0.4, round_to=4)
    separated, _ = factorize_layers(resnet, rows, options("depthwise-separable"), 0)
    slim, _ = prune_structured(separated, SHAPE, 0.5, round_to=4)
    pruned_first, _ = prune_structured(resnet, SHAPE, 0.25, round_to=4)
    last, _ = factorize_layers(pruned_first, rows, options("tucker", energy=0.6), 0)
    chains = {"twice": twice, "thrice": thrice, "pruned": pruned, "slim": slim, "last": last}
    assert any(name.count(".") == 3 for name in facts["ranks"])  # a part of a replaced layer was replaced
    assert pruned.get_submodule("blocks.2.conv2.1").in_channels < once.get_submodule("blocks.2.conv2.1").in_channels
    check_fresh_process(tmp_path, {name: (module, card_of(RESNET)) for name, module in chains.items()})
    again, card = load_model(tmp_path / "twice")
    assert count_cost(again, SHAPE) == count_cost(twice, SHAPE)
    assert save_model(tmp_path / "copy", again, card_of(RESNET)).layers == card.layers


@pytest.mark.parametrize("method", ["tucker", "cp"])
@pytest.mark.parametrize("budget", [None, 0.35, 0.8])
def test_budget_is_kept_and_nearly_used_up(resnet: nn.Module, method: str, budget: float | None) -> None:
    module, facts = factorize_layers(resnet, torch.randn(1, *SHAPE), options(method, budget=budget), 0)
    assert facts["macs_before"] == count_cost(resnet, SHAPE)["macs"]
    assert {"macs": facts["macs_after"], "parameters": facts["parameters_after"]} == count_cost(module, SHAPE)
    share = facts["macs_after"] / facts["macs_before"]
    assert (budget or 0.5) - 0.15 < share <= (budget or 0.5)
    layers = {name for name, layer in resnet.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert {*facts["ranks"], *facts["kept_whole"]} == layers and facts["parameters_after"] < facts["parameters_before"]


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_each_replaced_layer_keeps_the_energy_asked_for(method: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, stride=2)
    )
    macs = []
    for energy in (0.2, 0.4):
        module, facts = factorize_layers(network, torch.randn(1, *SHAPE), options(method, energy=energy), 0)
        macs.append(facts["macs_after"])
        assert facts["ranks"]
        for name in facts["ranks"]:
            original = network.get_submodule(name)
            rows = torch.eye(original.in_channels * 9).reshape(-1, original.in_channels, 3, 3)  # every impulse
            whole, parts = copy.deepcopy(original), copy.deepcopy(module.get_submodule(name))
            for part in (whole, *parts):
                part.stride, part.padding = (1, 1), (0, 0)
            kernel, fitted = whole(rows), parts(rows)
            missed = ((kernel - fitted).square().sum() / kernel.square().sum()).item()
            assert missed <= 1 - energy + 1e-5, name
    assert macs[0] < macs[1] < facts["macs_before"]


def test_budget_goes_to_layers_that_need_it(resnet: nn.Module) -> None:
    """A layer made of two channels' worth of kernels gets the lowest ranks; the others share what it leaves."""
    simple = resnet.get_submodule("blocks.2.conv2")
    simple.weight.data = torch.einsum("oc,ci,ihw->oihw", torch.randn(32, 2), torch.randn(2, 32), torch.ones(32, 3, 3))
    _, facts = factorize_layers(resnet, torch.randn(1, *SHAPE), options("tucker"), 0)
    assert facts["ranks"]["blocks.2.conv2"] == [8, 8]


def test_tuning_recovers_what_factorizing_cost(resnet: nn.Module, data: TrainingData) -> None:
    before = copy.deepcopy(resnet.state_dict())
    longer = options(training=TUNING.model_copy(update={"epochs": 8}))
    tuned, history, facts = factorize_module(resnet.train(), data, longer, 0, input_shape=SHAPE)
    assert len(history) == 8 and not tuned.training and resnet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    untuned, _ = factorize_layers(resnet, data.inputs[:1], options(), 0)
    accuracy, _ = evaluate(untuned, data.validation_inputs, data.validation_labels)
    assert facts["validation_accuracy_before_tuning"] == accuracy
    tuned_loss, loss = (F.cross_entropy(one.eval()(data.inputs), data.labels).item() for one in (tuned, untuned))
    assert tuned_loss < loss
    assert set(facts) == {
        "ranks",
        "kept_whole",
        "macs_before",
        "macs_after",
        "parameters_before",
        "parameters_after",
        "validation_accuracy_before_tuning",
    }


@pytest.mark.parametrize("method", ["svd", "cp"])
def test_the_same_seed_gives_the_same_weights_also_after_an_interruption(
    data: TrainingData, method: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 3))
    first, _, facts = factorize_module(module, data, options(method, energy=0.3), 5, input_shape=SHAPE)

    class Killed(Exception):
        pass

    saved = tmp_path / "progress"
    calls = 0

    def die_in_the_second_epoch(_layer: nn.Module, _inputs: object, _output: object) -> None:
        nonlocal calls
        calls += saved.exists() and torch.is_grad_enabled()
        if calls:
            raise Killed

    handle = nn.modules.module.register_module_forward_hook(die_in_the_second_epoch)
    with pytest.raises(Killed):
        factorize_module(module, data, options(method, energy=0.3), 5, input_shape=SHAPE, checkpoint=saved)
    handle.remove()
    resumed, history, again = factorize_module(
        module, data, options(method, energy=0.3), 5, input_shape=SHAPE, checkpoint=saved
    )
    assert again == facts and len(history) == 2 and facts["ranks"]
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_network_that_tells_layers_apart_keeps_those_it_tells(data: TrainingData) -> None:
    """Its output changes where a layer is replaced, though nothing fails."""

    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
            self.output = nn.Linear(64, 3)

        def forward(self, rows):  # type: ignore[no-untyped-def]
            values = self.two(self.one(rows.flatten(1)))
            return self.output(values) * (2 if isinstance(self.one, nn.Linear) else 1)

    torch.manual_seed(0)
    _, facts = factorize_layers(Curious(), data.inputs[:1], options("svd", budget=0.8), 0)
    assert list(facts["ranks"]) == ["two"]
    assert facts["kept_whole"]["one"] == "the network does more with it than call it: its output changes"


def test_network_that_breaks_only_when_all_are_replaced_is_refused(data: TrainingData) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, rows):  # type: ignore[no-untyped-def]
            if not any(isinstance(layer, nn.Linear) for layer in self.children()):
                raise RuntimeError("no linear layer left\nat all")
            return self.two(self.one(rows.flatten(1)))

    with pytest.raises(InputError, match=r"one: the network does more with it than call it: no linear layer left; two"):
        factorize_layers(Counting(), data.inputs[:1], options("svd"), 0)


def test_transformer_whose_fast_path_reads_weights_keeps_them_whole(data: TrainingData) -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 32)
            self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
            self.output = nn.Linear(32, 3)

        def forward(self, rows):  # type: ignore[no-untyped-def]
            return self.output(self.layer(self.embed(rows.flatten(1, 2))).mean(1))

    torch.manual_seed(0)
    module = Transformer().eval()
    factorized, facts = factorize_layers(module, data.inputs[:1], options("svd", budget=0.99), 0)
    assert list(facts["ranks"]) == ["embed"]
    assert "read" in facts["kept_whole"]["layer.linear1"] or "more with it" in facts["kept_whole"]["layer.linear1"]
    assert factorized(data.inputs[:2]).shape == (2, 3)
