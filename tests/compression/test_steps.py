"""Steps read and write whole model folders, one after the other, and give the same digests each time."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlites.compression.pruning.magnitude import sparsity
from mlites.compression.steps import distill, export, prune, quantize, train_teacher
from mlites.data.dataset import Dataset, Preprocessing, write_dataset
from mlites.errors import InputError
from mlites.files import digest_folder
from mlites.inference import open_session
from mlites.models.card import read_card, write_model_folder
from mlites.models.checkpoint import load_model
from mlites.models.factory import TRUSTED
from mlites.recipe import MLP, Distill, Prune, Quantize, ResNet, Teacher, Training

BRIEF = Training(epochs=2, batch_size=32, precision="fp32", learning_rate=0.02)


def pass_of(kind: Any, **options: Any) -> Any:
    name = kind.__name__.lower()
    return kind(technique=name, **({"training": BRIEF} if kind is not Quantize else {}), **options)


def test_teacher_learns_and_its_card_says_how(teacher: Path, dataset: Dataset) -> None:
    card = read_card(teacher)
    (entry,) = card.provenance
    assert entry["step"] == "train" and entry["seed"] == 0 and entry["data"] == dataset.digest
    assert [epoch["epoch"] for epoch in entry["history"]] == [1, 2, 3]
    assert entry["metrics"]["validation_accuracy"] == entry["history"][-1]["validation_accuracy"] > 0.8
    assert entry["metrics"]["parameters"] == sum(p.numel() for p in load_model(teacher)[0].parameters())
    assert card.parents == () and card.preprocessing == dataset.preprocessing.to_json()


def test_chain_of_prune_export_quantize_keeps_its_provenance(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    options = pass_of(Prune, amount=0.5, round_to=4)
    pruned = prune(teacher, dataset, options, 1, tmp_path / "pruned")
    exported = export(tmp_path / "pruned", dataset, tmp_path / "onnx")
    quantized = quantize(tmp_path / "onnx", dataset, pass_of(Quantize), tmp_path / "int8")
    assert [entry["step"] for entry in quantized.provenance] == ["train", "prune", "export", "quantize"]
    assert pruned.parents == (read_card(teacher).digest,) and quantized.parents == (exported.digest,)
    assert quantized.provenance[1]["options"]["pass"] == "prune" and pruned.layers["stem"]["out"] == 4
    assert exported.form == quantized.form == "onnx" and exported.layers == {}
    metrics = pruned.provenance[-1]["metrics"]
    assert metrics["channels_after"] * 2 == metrics["channels_before"]
    assert metrics["macs"] == metrics["macs_after"] < metrics["macs_before"] / 3
    assert quantized.provenance[-1]["metrics"]["size_bytes"] == (tmp_path / "int8" / "model.onnx").stat().st_size
    rows, labels = dataset.arrays("validation")
    (logits,) = open_session(tmp_path / "int8" / "model.onnx", 1).run(["logits"], {"input": rows})
    assert quantized.provenance[-1]["metrics"]["validation_accuracy"] == (logits.argmax(1) == labels).mean() > 0.6


def test_steps_repeat_to_the_byte(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        folder = tmp_path / name
        prune(teacher, dataset, pass_of(Prune, method="magnitude", amount=0.7), 1, folder / "sparse")
        distill(teacher, teacher, dataset, pass_of(Distill, student=MLP(family="mlp", hidden=(8,))), 2, folder / "mlp")
        export(folder / "mlp", dataset, folder / "onnx")
        quantize(folder / "onnx", dataset, pass_of(Quantize, method="dynamic"), folder / "dynamic")
        quantize(folder / "onnx", dataset, pass_of(Quantize, samples=20), folder / "static")
        digests.append(digest_folder(folder))
    assert digests[0] == digests[1]


def test_zeros_survive_fine_tuning_and_later_pruning(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    sparse = prune(teacher, dataset, pass_of(Prune, method="magnitude", amount=0.8), 1, tmp_path / "sparse")
    metrics = sparse.provenance[-1]["metrics"]
    assert metrics["zeros"] == round(0.8 * metrics["weights"])
    assert sparsity(load_model(tmp_path / "sparse")[0])["zeros"] == metrics["zeros"]
    both = prune(tmp_path / "sparse", dataset, pass_of(Prune, amount=0.5, round_to=4), 1, tmp_path / "both")
    assert both.provenance[-1]["metrics"]["sparsity"] > 0.5
    dense = prune(teacher, dataset, pass_of(Prune, amount=0.5, round_to=4), 1, tmp_path / "dense")
    assert dense.provenance[-1]["metrics"]["sparsity"] < 0.01


@pytest.mark.parametrize("augmentation", [(), ("crop",)])
def test_student_learns_from_the_teacher_alone(
    teacher: Path, dataset: Dataset, tmp_path: Path, augmentation: tuple[str, ...]
) -> None:
    """With soft targets alone the labels play no part: scrambled ones give the same student."""
    generator = np.random.default_rng(1)
    splits = {name: dataset.split(name) for name in ("train", "validation", "test")}
    splits["train"] = (splits["train"][0], generator.permutation(splits["train"][1]))
    (tmp_path / "data").mkdir()
    scrambled = write_dataset(
        tmp_path / "data",
        task=dataset.task,
        source=dataset.source,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
        splits=splits,
    )
    training = Training(
        epochs=6,
        batch_size=32,
        precision="fp32",
        learning_rate=0.05,
        augmentation=augmentation,  # type: ignore[arg-type]
    )
    options = Distill(technique="distill", student=MLP(family="mlp", hidden=(16,)), soft_weight=1.0, training=training)
    weights = []
    for name, data in (("true", dataset), ("scrambled", scrambled)):
        card = distill(teacher, teacher, data, options, 0, tmp_path / name)
        assert card.provenance[-1]["metrics"]["validation_accuracy"] > 0.8
        assert card.architecture == {"family": "mlp", "hidden": [16]} and card.layers == {}
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_pruned_model_can_teach(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    prune(teacher, dataset, pass_of(Prune, amount=0.5, round_to=4), 1, tmp_path / "pruned")
    student = ResNet(family="resnet", depth=8, width=4)
    card = distill(tmp_path / "pruned", teacher, dataset, pass_of(Distill, student=student), 1, tmp_path / "student")
    assert card.layers == {} and load_model(tmp_path / "student")[1] == card


def test_given_model_folder_is_taken_as_it_is(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    card = train_teacher(Teacher(model="s3://models/mine"), dataset, 0, tmp_path / "model", given=teacher)
    assert digest_folder(tmp_path / "model") == digest_folder(teacher) and card == read_card(teacher)
    with pytest.raises(InputError, match="no local copy of them was given"):
        train_teacher(Teacher(model="s3://models/mine"), dataset, 0, tmp_path / "model")


def test_models_own_preprocessing_counts(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The same pixels under other statistics give the same accuracy."""
    (tmp_path / "data").mkdir()
    shifted = write_dataset(
        tmp_path / "data",
        task=dataset.task,
        source=dataset.source,
        classes=dataset.classes,
        preprocessing=Preprocessing(1.0, (17.0,), (3.0,)),
        splits={name: dataset.split(name) for name in ("train", "validation", "test")},
    )
    one, other = (export(teacher, data, tmp_path / name) for name, data in (("one", dataset), ("other", shifted)))
    accuracies = [card.provenance[-1]["metrics"]["validation_accuracy"] for card in (one, other)]
    assert accuracies[0] == accuracies[1] > 0.8


def users_network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))


def wrong_width() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


def wrong_input() -> nn.Module:
    return nn.Linear(7, 3)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "my_package", sys.modules[__name__])
    names = ("users_network", "wrong_width", "wrong_input")
    monkeypatch.setenv(TRUSTED, ",".join(f"my_package:{name}" for name in names))
    return "my_package"


def test_users_own_factory_goes_through_every_pass(package: str, dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(users_network(32).state_dict(), weights)
    given = Teacher(factory=f"{package}:users_network", options={"width": 32}, weights="mine")
    card = train_teacher(given, dataset, 0, tmp_path / "model", given=weights)
    assert card.architecture["family"] == "factory" and "history" not in card.provenance[0]
    prune(tmp_path / "model", dataset, pass_of(Prune, amount=0.5), 0, tmp_path / "pruned")
    export(tmp_path / "pruned", dataset, tmp_path / "onnx")
    final = quantize(tmp_path / "onnx", dataset, pass_of(Quantize), tmp_path / "int8")
    assert final.provenance[-1]["metrics"]["validation_accuracy"] > 0.6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_width", r"must answer 2 rows with float32 logits of shape \(2, 3\), got torch.float32 \(2, 5\)"),
        ("wrong_input", r"the factory's network fails on rows of shape \(1, 8, 8\): "),
    ],
)
def test_factory_that_does_not_suit_the_data_is_refused(
    package: str, dataset: Dataset, tmp_path: Path, name: str, message: str
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(globals()[name]().state_dict(), weights)
    with pytest.raises(InputError, match=message):
        train_teacher(Teacher(factory=f"{package}:{name}", weights="mine"), dataset, 0, tmp_path / "m", given=weights)
    assert not (tmp_path / "m").exists()


def other_dataset(folder: Path, dataset: Dataset, classes: tuple[str, ...], size: int) -> Dataset:
    folder.mkdir()
    rows = (np.zeros((4, 1, size, size), np.uint8), np.zeros(4, np.int64))
    splits = {name: rows for name in ("train", "validation", "test")}
    return write_dataset(
        folder, task=dataset.task, source="npz", classes=classes, preprocessing=dataset.preprocessing, splits=splits
    )


def test_model_of_other_classes_or_shapes_is_refused(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    renamed = other_dataset(tmp_path / "renamed", dataset, ("x", "y", "z"), 8)
    larger = other_dataset(tmp_path / "larger", dataset, dataset.classes, 9)
    with pytest.raises(InputError, match=r"knows classes 3 \(a, b, c...\), the data has 3 \(x, y, z...\)"):
        export(teacher, renamed, tmp_path / "out")
    with pytest.raises(InputError, match=r"takes rows of shape \(1, 8, 8\), the data has \(1, 9, 9\)"):
        prune(teacher, larger, pass_of(Prune), 0, tmp_path / "out")


def test_preprocessing_that_is_none_is_refused(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    from mlites.models.checkpoint import save_model

    module, card = load_model(teacher)
    save_model(tmp_path / "odd", module, dataclasses.replace(card, preprocessing={"scale": 1}))
    with pytest.raises(InputError, match="the model's preprocessing cannot be read: "):
        export(tmp_path / "odd", dataset, tmp_path / "out")


def test_quantizing_wants_onnx_with_its_weights_inside(teacher: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a PyTorch model; export it to ONNX before quantizing"):
        quantize(teacher, dataset, pass_of(Quantize), tmp_path / "out")
    export(teacher, dataset, tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    write_model_folder(tmp_path / "odd", model.SerializeToString(), read_card(tmp_path / "onnx"))
    with pytest.raises(InputError, match="lies in another file"):
        quantize(tmp_path / "odd", dataset, pass_of(Quantize), tmp_path / "out")


def test_table_goes_through_every_pass(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(120) % 2).astype(np.int64)
    rows = (generator.normal(size=(120, 5)) + 3 * labels[:, None]).astype(np.float32)
    (tmp_path / "data").mkdir()
    mean, std = rows.mean(0).tolist(), rows.std(0).tolist()
    data = write_dataset(
        tmp_path / "data",
        task="tabular-classification",
        source="csv",
        classes=("no", "yes"),
        preprocessing=Preprocessing(1.0, tuple(mean), tuple(std)),
        splits={"train": (rows[:80], labels[:80]), "validation": (rows[80:], labels[80:]), "test": (rows, labels)},
    )
    teacher = Teacher(architecture=MLP(family="mlp", hidden=(32, 16)), training=BRIEF)
    train_teacher(teacher, data, 0, tmp_path / "model")
    prune(tmp_path / "model", data, pass_of(Prune, amount=0.5), 0, tmp_path / "pruned")
    export(tmp_path / "pruned", data, tmp_path / "onnx")
    card = quantize(tmp_path / "onnx", data, pass_of(Quantize, calibration="percentile"), tmp_path / "int8")
    assert card.provenance[-1]["metrics"]["validation_accuracy"] > 0.9
