"""Transfer keeps what the network knows, learns new classes from few rows, resumes to the bit, and reloads alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset, Preprocessing, write_dataset
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.models.checkpoint import load_model
from mlites.recipe import MLP, ConvNet, Teacher, Training, Transfer
from mlites.training.loop import TrainingData, evaluate, train
from mlites.training.transfer import find_route, layer_rates, replace_head_, transfer

PLAIN = Training(epochs=2, batch_size=16, learning_rate=0.02, precision="fp32")
SHAPE = (1, 8, 8)


def pictures(classes: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Each class is a pattern of its own, from one family of patterns, in noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, *SHAPE, generator=generator)
    labels = torch.arange(rows) % classes
    return patterns[labels] + 0.7 * torch.randn(rows, *SHAPE, generator=generator), labels


def some_data(classes: int = 3, rows: int = 48) -> TrainingData:
    inputs, labels = pictures(classes, rows + 30)
    return TrainingData(inputs[:rows], labels[:rows], inputs[rows:], labels[rows:])


def pretrained() -> nn.Module:
    options = ConvNet(family="convnet", channels=(6, 8, 8, 8), strides=(1, 2, 1, 1))
    module = build_model(options, SHAPE, 5, seed=1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 0.1  # as training leaves it
    return module.eval()


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_head_learns_alone_first_then_everything(tmp_path: Path) -> None:
    module, data = pretrained(), some_data()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found, history = transfer(module, data, Transfer(training=PLAIN), 0, classes_count=3, checkpoint=tmp_path / "t")
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert not found.training and found.output.weight.shape == (3, 8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    halfway = load_file(tmp_path / "t" / "head.safetensors")
    for name, tensor in before.items():
        if not name.startswith("output."):
            assert torch.equal(halfway[f"model.{name}"], tensor), name  # statistics of batch normalization included
            assert not torch.equal(found.state_dict()[name], tensor), name


def test_without_head_epochs_all_layers_learn_from_the_start() -> None:
    options = Transfer(head_epochs=0, training=PLAIN)
    _, history = transfer(pretrained(), some_data(), options, 0, classes_count=3)
    assert [entry["epoch"] for entry in history] == [1, 2]


def test_rates_fall_by_the_decay_from_group_to_group_in_the_order_of_execution() -> None:
    class Backwards(nn.Module):
        """Its layers are named in another order than they run."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(6))
            self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(6))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, rows: Tensor) -> Tensor:
            values = rows * self.scale
            for layer, norm in zip(reversed(self.layers), reversed(self.norms), strict=True):
                values = norm(layer(values)).relu()
            return self.head(values)

    module = Backwards()
    rates = layer_rates(module, find_route(module, torch.randn(2, 4)), 0.5)
    assert rates.pop("scale") == 0.125  # what belongs to the whole runs first
    of = {name: rates[f"{name}.weight"] for name in (f"{kind}.{i}" for kind in ("layers", "norms") for i in range(6))}
    assert [of[f"layers.{i}"] for i in range(6)] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert all(of[f"norms.{i}"] == of[f"layers.{i}"] for i in range(6))
    assert len(rates) == 6 + 2 * 6 and not any(name.startswith("head") for name in rates)


@pytest.mark.parametrize(("hidden", "distances"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (7, [3, 3, 2, 2, 1, 1, 1])])
def test_groups_are_as_equal_as_can_be(hidden: int, distances: list[int]) -> None:
    module = build_model(MLP(family="mlp", hidden=(4,) * hidden), (5,), 3)
    rates = layer_rates(module, find_route(module, torch.randn(2, 5)), 0.1)
    found = [round(-np.log10(rates[f"hidden.{index}.bias"])) for index in range(hidden)]
    assert found == distances


def test_a_step_moves_each_group_by_its_rate() -> None:
    once = PLAIN.model_copy(update={"epochs": 1, "batch_size": 48, "momentum": 0.0, "weight_decay": 0.0})
    moved: list[dict[str, Tensor]] = []
    for decay in (1.0, 0.4):
        options = Transfer(head_epochs=0, layer_decay=decay, training=once)
        module = pretrained()
        found, _ = transfer(module, some_data(), options, 0, classes_count=3)
        before = dict(module.named_parameters())
        moved.append({n: (p - before[n]).detach() for n, p in found.named_parameters() if not n.startswith("output")})
    for block, distance in ((0, 3), (1, 2), (2, 1), (3, 1)):
        for name in (f"blocks.{block}.conv.weight", f"blocks.{block}.norm.bias"):
            torch.testing.assert_close(moved[1][name], moved[0][name] * 0.4**distance, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("calls", [8, 16])
def test_interrupted_transfer_ends_with_the_same_bits(tmp_path: Path, calls: int) -> None:
    options, data = Transfer(training=PLAIN), some_data()
    whole, history = transfer(pretrained(), data, options, 0, classes_count=3)

    remaining = calls

    def interrupt(*_: Any) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            raise KeyboardInterrupt

    module = pretrained()
    module.blocks[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        transfer(module, data, options, 0, classes_count=3, checkpoint=tmp_path / "transfer")
    done = {path.name for path in (tmp_path / "transfer").iterdir()}
    assert done == ({"head.safetensors"} if calls == 8 else {"head.safetensors", "all.safetensors"})
    resumed, again = transfer(pretrained(), data, options, 0, classes_count=3, checkpoint=tmp_path / "transfer")
    assert equal(whole, resumed) and again == history


def test_seed_decides_the_result() -> None:
    options, data = Transfer(head_epochs=1, training=PLAIN.model_copy(update={"epochs": 1})), some_data()
    one, same, other = (transfer(pretrained(), data, options, seed, classes_count=3)[0] for seed in (3, 3, 4))
    assert equal(one, same) and not equal(one, other)


def test_few_rows_teach_a_pretrained_network_more_than_a_new_one() -> None:
    generator = torch.Generator().manual_seed(5)
    kernels = torch.randn(6, 1, 3, 3, generator=generator)  # classes are textures: what filters see, not where

    def textures(first: int, rows: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(rows) % 3
        noise = torch.randn(rows, 1, 10, 10, generator=generator)
        images = torch.cat(
            [F.conv2d(row[None], kernels[first + k, None]) for row, k in zip(noise, labels, strict=True)]
        )
        return images / images.std(), labels

    inputs, labels = textures(0, 600)
    source = TrainingData(inputs[:540], labels[:540], inputs[540:], labels[540:])
    inputs, labels = textures(3, 324)
    few = TrainingData(inputs[:24], labels[:24], inputs[24:], labels[24:])
    options = ConvNet(family="convnet", channels=(16, 16), strides=(1, 2))
    module = build_model(options, SHAPE, 3, seed=0)
    train(module, source, PLAIN.model_copy(update={"epochs": 6, "learning_rate": 0.05}), 0, report=lambda _: None)
    short = PLAIN.model_copy(update={"epochs": 4, "batch_size": 8})
    found, _ = transfer(module, few, Transfer(head_epochs=2, training=short), 0, classes_count=3)
    scratch = build_model(options, SHAPE, 3, seed=0)
    train(scratch, few, short.model_copy(update={"epochs": 6}), 0, report=lambda _: None)
    ours, theirs = (evaluate(one, few.validation_inputs, few.validation_labels)[0] for one in (found, scratch))
    assert ours > theirs + 0.05, (ours, theirs)


def convolutional_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_1x1_convolution_is_a_head_too() -> None:
    module = convolutional_head()
    assert find_route(module, torch.zeros(2, *SHAPE)).head == "2"
    options = Transfer(head_epochs=1, training=PLAIN.model_copy(update={"epochs": 1}))
    found, _ = transfer(module, some_data(), options, 0, classes_count=3)
    assert found[2].out_channels == 3 and found(torch.zeros(2, *SHAPE)).shape == (2, 3)


def test_attention_whose_projection_never_runs_has_a_rate() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.output = nn.Linear(8, 5, bias=False)

        def forward(self, rows: Tensor) -> Tensor:
            values = rows.flatten(1, 2)
            return self.output(self.attention(values, values, values)[0].mean(1)).log_softmax(1)

    module = Attends()
    rates = layer_rates(module, find_route(module, torch.randn(2, *SHAPE)), 0.5)
    assert set(rates.values()) == {0.5} and "attention.out_proj.weight" in rates
    found, _ = transfer(module, some_data(), Transfer(training=PLAIN), 0, classes_count=3)
    assert found.output.weight.shape == (3, 8) and found.output.bias is None


class Custom(nn.Module):
    """A network whose ending the test decides."""

    def __init__(self, ending: Callable[["Custom", Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Linear(64, 8)
        self.head = nn.Linear(8, 5)
        self.other = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.norm = nn.BatchNorm1d(5)
        self.wide = nn.Conv2d(1, 5, 8)
        self.ending = ending

    def forward(self, rows: Tensor) -> Any:
        return self.ending(self, rows)


def body(module: Custom, rows: Tensor) -> Tensor:
    return module.body(rows.flatten(1)).relu()


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (lambda m, x: m.norm(m.head(body(m, x))), r"its output comes out of norm \(BatchNorm1d\)"),
        (lambda m, x: m.head(body(m, x)) * m.scale, "its output is computed from the parameter scale itself"),
        (lambda m, x: m.head(body(m, x)) + m.other(body(m, x)), "put together from the answers of head, other"),
        (lambda m, x: m.wide(x).flatten(1), r"its output comes out of wide \(Conv2d\)"),
        (lambda m, x: m.head(body(m, x)).detach(), "no layer with weights leads to its output"),
        (lambda m, x: (m.head(body(m, x)),), "it answers with a tuple instead of one tensor of logits"),
        (lambda m, x: m.head(body(m, x))[:, :4], r"with 6 outputs of its layer head, 2 rows give shape \(2, 4\)"),
        (lambda m, x: m.head(body(m, x)).view(-1, 5), "with 6 outputs of its layer head it fails: "),
    ],
)
def test_network_without_a_head_to_replace_is_refused(ending: Callable[..., Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"transfer replaces the linear layer or 1x1 convolution .*: .*{reason}"):
        transfer(Custom(ending), some_data(), Transfer(training=PLAIN), 0, classes_count=6)


def test_tied_weights_are_refused() -> None:
    module = Custom(lambda m, x: m.head(body(m, x)))
    module.other.weight = module.head.weight
    with pytest.raises(InputError, match=r"the weights of its output layer head are those of other\.weight, too"):
        transfer(module, some_data(), Transfer(training=PLAIN), 0, classes_count=6)


def test_rows_of_another_shape_are_refused() -> None:
    module = build_model(MLP(family="mlp", hidden=(4,)), (5,), 3)
    with pytest.raises(
        InputError, match=r"the pretrained network fails on rows of shape \(1, 8, 8\): .*; transfer needs"
    ):
        transfer(module, some_data(), Transfer(training=PLAIN), 0, classes_count=3)


def test_new_head_is_drawn_from_the_seed_alone() -> None:
    heads = [nn.Linear(8, 5, bias=False) for _ in range(2)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for head in heads:
        replace_head_(head, "", 3, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0].weight, heads[1].weight) and heads[0].weight.shape == (3, 8)
    assert float(heads[0].weight.detach().abs().max()) <= 8**-0.5  # as PyTorch draws: uniform below 1 / sqrt(in)


FACTORY = """
from torch import nn

def net(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, classes))
"""

READER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from mlites.models.checkpoint import load_model
rows = load_file(sys.argv[1])["rows"]
torch.set_num_threads(1)
with torch.no_grad():
    save_file({folder: load_model(Path(folder))[0](rows) for folder in sys.argv[3:]}, sys.argv[2])
"""


def dataset(folder: Path, classes: tuple[str, ...], shape: tuple[int, ...] = SHAPE) -> Dataset:
    folder.mkdir()
    generator = np.random.default_rng(len(classes))
    patterns = generator.integers(0, 256, (len(classes), *shape))
    splits = {}
    for name, count in (("train", 60), ("validation", 30), ("test", 30)):
        labels = np.arange(count) % len(classes)
        noisy = patterns[labels] * 0.5 + generator.integers(0, 128, (count, *shape))
        splits[name] = (noisy.astype(np.uint8), labels.astype(np.int64))
    scale = Preprocessing(1 / 255, (0.5,) * shape[0], (0.2 + 0.1 * len(classes),) * shape[0])
    return write_dataset(
        folder, task="image-classification", source="npz", classes=classes, preprocessing=scale, splits=splits
    )


def test_transferred_teacher_reloads_in_a_fresh_process_with_its_new_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = dataset(tmp_path / "old", ("a", "b", "c", "d")), dataset(tmp_path / "new", ("x", "y"))
    (tmp_path / "own.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLITES_TRUSTED_FACTORIES", "own:net")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = Teacher(architecture=ConvNet(family="convnet", channels=(6, 8), strides=(2, 1)), training=PLAIN)
    parent = train_teacher(first, old, 0, tmp_path / "parent")
    options = Transfer(head_epochs=1, training=PLAIN)
    card = train_teacher(Teacher(model="parent", transfer=options), new, 3, tmp_path / "model", tmp_path / "parent")
    assert card.classes == ("x", "y") and card.layers == {} and card.parents == (parent.digest,)
    assert card.preprocessing == parent.preprocessing  # the new rows come as the network knows them
    assert [entry["step"] for entry in card.provenance] == ["train", "train"]
    last = card.provenance[-1]
    assert last["options"] == {"transfer": json.loads(options.model_dump_json())} and last["seed"] == 3
    assert last["data"] == new.digest and [entry["epoch"] for entry in last["history"]] == [1, 2, 3]

    from own import net  # type: ignore[import-not-found]

    torch.manual_seed(0)
    save_file(net(7).state_dict(), tmp_path / "weights.safetensors")
    own = Teacher(factory="own:net", options={"classes": 7}, weights="weights.safetensors", transfer=options)
    card = train_teacher(own, new, 0, tmp_path / "factory", tmp_path / "weights.safetensors", tmp_path / "checkpoint")
    assert card.layers == {"4": {"kind": "linear", "in": 216, "out": 2}}  # build_model gives 7, as the factory does
    assert card.provenance[0]["options"] == {"factory": "own:net", **last["options"]}

    rows = torch.randn(5, *SHAPE)
    save_file({"rows": rows}, tmp_path / "rows")
    folders = [tmp_path / "model", tmp_path / "factory"]
    command = [sys.executable, "-c", READER, *map(str, [tmp_path / "rows", tmp_path / "answers", *folders])]
    subprocess.run(command, check=True, timeout=120)
    found = load_file(tmp_path / "answers")
    for folder in folders:
        module, _ = load_model(folder)
        with torch.no_grad():
            assert found[str(folder)].shape == (5, 2) and torch.equal(found[str(folder)], module(rows))


def test_teacher_of_another_shape_is_refused(tmp_path: Path) -> None:
    data, colour = dataset(tmp_path / "grey", ("a", "b")), dataset(tmp_path / "colour", ("a", "b"), (3, 8, 8))
    first = Teacher(architecture=MLP(family="mlp", hidden=(4,)), training=PLAIN.model_copy(update={"epochs": 1}))
    train_teacher(first, data, 0, tmp_path / "parent")
    with pytest.raises(
        InputError, match=r"takes rows of shape \(1, 8, 8\), the data has \(3, 8, 8\); transfer changes"
    ):
        train_teacher(
            Teacher(model="parent", transfer=Transfer(training=PLAIN)), colour, 0, tmp_path / "x", tmp_path / "parent"
        )
