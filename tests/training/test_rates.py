"""Learning rates of single parameters: factors act as they should, and frozen layers stay as they are."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mlites.recipe import Training
from mlites.training.loop import TrainingData, train

OPTIONS = Training(epochs=2, batch_size=10, learning_rate=0.1, precision="fp32", momentum=0.0, weight_decay=0.0)


def rows() -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 4, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    return TrainingData(inputs[:20], labels[:20], inputs[20:], labels[20:])


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    return nn.Sequential(body, nn.Linear(6, 2))


def trained(rates: dict[str, float] | None, checkpoint: Path | None = None) -> nn.Module:
    module = network()
    train(module, rows(), OPTIONS, 0, rates=rates, checkpoint=checkpoint, report=lambda _: None)
    return module


def test_factor_multiplies_the_step_of_its_parameter_alone() -> None:
    once = OPTIONS.model_copy(update={"epochs": 1, "batch_size": 20, "schedule": "step"})
    steps = []
    for rates in ({}, {"0.0.weight": 0.25}):
        module, before = network(), network().state_dict()
        train(module, rows(), once, 0, rates=rates, report=lambda _: None)
        steps.append({name: tensor - before[name] for name, tensor in module.state_dict().items()})
    torch.testing.assert_close(steps[1]["0.0.weight"], steps[0]["0.0.weight"] / 4)
    for name in ("0.0.bias", "0.1.weight", "1.weight", "1.bias"):
        assert torch.equal(steps[1][name], steps[0][name])


def test_frozen_layers_keep_weights_and_statistics_and_drop_nothing() -> None:
    frozen = {name: 0.0 for name, _ in network().named_parameters() if name.startswith("0.")}
    module, before = trained(frozen), network().state_dict()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("0."), name
    assert all(parameter.requires_grad for parameter in module.parameters())
    features = network()[0].eval()(rows().inputs).detach()  # what the head saw, if nothing was dropped
    head = network()[1]
    alone = TrainingData(
        features, rows().labels, network()[0].eval()(rows().validation_inputs).detach(), rows().validation_labels
    )
    train(head, alone, OPTIONS, 0, report=lambda _: None)
    torch.testing.assert_close(module[1].weight, head.weight)


def test_parameters_frozen_by_their_owner_are_frozen_alike() -> None:
    module = network()
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    train(module, rows(), OPTIONS, 0, report=lambda _: None)
    assert not any(parameter.requires_grad for parameter in module[0].parameters())
    same = trained({name: 0.0 for name, _ in network().named_parameters() if name.startswith("0.")})
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), same.parameters(), strict=True))


def test_no_rates_and_rates_of_one_are_the_same_training() -> None:
    one, other = trained(None), trained({name: 1.0 for name, _ in network().named_parameters()})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_checkpoint_of_other_rates_is_not_taken(tmp_path: Path) -> None:
    trained({"1.weight": 0.5}, tmp_path / "checkpoint")
    again = trained({"1.weight": 0.1}, tmp_path / "checkpoint")
    fresh = trained({"1.weight": 0.1})
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(("name", "rate"), [("2.weight", 1.0), ("1.weight", -1.0), ("1.weight", float("inf"))])
def test_rates_of_what_is_not_there_or_below_zero_are_refused(name: str, rate: float) -> None:
    with pytest.raises(
        ValueError, match=f"rates must be 0 or more for parameters of the module, got {rate} for '{name}'"
    ):
        trained({name: rate})
