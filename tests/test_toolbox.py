"""The notebook's functions: loaded late, leaving what they are given as it was, chained from prune to INT8."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mlites
from mlites.errors import InputError
from mlites.training.loop import evaluate

BRIEF = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "precision": "fp32"}


def _rows(count: int = 240) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return (generator.normal(size=(3, 16))[labels] * 2 + generator.normal(size=(count, 16))).astype("f"), labels


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def test_importing_the_package_does_not_import_pytorch() -> None:
    code = "import sys, mlites; assert 'torch' not in sys.modules; mlites.prune; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        mlites.prunes  # noqa: B018


def test_prune_then_distill_then_quantize_gives_a_network_that_still_knows_its_classes() -> None:
    data = mlites.arrays(*_rows())
    teacher = _network()
    mlites.train(teacher, data, **BRIEF)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    pruned = mlites.prune(teacher, data, amount=0.5, round_to=4, training=BRIEF)
    assert pruned.facts["channels_after"] * 2 == pruned.facts["channels_before"] and len(pruned.history) == 2
    taught = mlites.distill(teacher, pruned.model, data, control=False, training=BRIEF)
    quantized = mlites.quantize(taught.model, data, method="dynamic")
    from mlites.export import answers

    found = answers(quantized.model, data.validation_inputs.numpy()).argmax(1)
    assert (found == data.validation_labels.numpy()).mean() > 0.9
    assert evaluate(teacher, data.validation_inputs, data.validation_labels)[0] > 0.9
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_held_out_rows_are_the_same_share_of_every_class() -> None:
    inputs, labels = _rows(300)
    data = mlites.arrays(inputs, labels, validation=0.2)
    assert torch.bincount(data.validation_labels).tolist() == [20, 20, 20] and len(data.labels) == 240
    together = torch.cat([data.inputs, data.validation_inputs]).numpy()
    assert sorted(map(bytes, together)) == sorted(map(bytes, inputs))


def test_wrong_arrays_and_options_are_told() -> None:
    inputs, labels = _rows()
    with pytest.raises(InputError, match=r"labels must be one a row: got inputs \(240, 16\) and labels \(5,\)"):
        mlites.arrays(inputs, labels[:5])
    with pytest.raises(InputError, match=r"cannot hold out 0\.1 of 3 rows"):
        mlites.arrays(inputs[:3], labels[:3])
    with pytest.raises(ValueError, match="amount"):
        mlites.prune(_network(), mlites.arrays(inputs, labels), amount=2)
