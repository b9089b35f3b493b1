"""Rewinding returns weights or learning rates to the original training's, and re-initialization forgets it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mlites.compression.pruning.learning_rate_rewinding import replay_schedule
from mlites.compression.pruning.magnitude import apply_masks_, magnitude_masks
from mlites.compression.pruning.reinitialize import reinitialize_
from mlites.compression.pruning.rewinding import Origin, network_at_epoch, rewind_weights_
from mlites.compression.pruning.structured import narrow
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.recipe import MLP
from mlites.training.loop import TrainingData, train

Trained = dict[str, tuple[nn.Module, list[dict[str, float]]]]
Origins = Callable[[str], Origin]


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("family", ["mlp", "resnet"])
def test_epoch_0_is_the_initial_network(data: TrainingData, origins: Origins, family: str) -> None:
    assert equal(network_at_epoch(origins(family), data, 0), origins(family).build())


@pytest.mark.parametrize("family", ["mlp", "resnet"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_epoch_k_is_the_original_runs(
    data: TrainingData, origins: Origins, family: str, epoch: int, tmp_path: Path
) -> None:
    """The original run, stopped where it stood after epoch k; early stopping does not change how it began."""
    origin = origins(family)
    original = origin.build()

    def stop(entry: dict[str, float]) -> None:
        if entry["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(original, data, origin.options, origin.seed, report=stop)
    stopping = Origin(origin.build, origin.options.model_copy(update={"early_stop": 1}), origin.seed)
    for again in (origin, stopping, origin):
        assert equal(network_at_epoch(again, data, epoch, tmp_path / "run"), original)


def test_rewound_ticket_is_the_earlier_network_under_the_mask(
    data: TrainingData, origins: Origins, trained: Trained
) -> None:
    ticket, masks = network_at_epoch(origins("mlp"), data, 0), magnitude_masks(trained["mlp"][0], 0.8)
    earlier = origins("mlp").build()
    rewind_weights_(ticket, earlier)
    apply_masks_(ticket, masks)
    for name, weight in earlier.named_parameters():
        assert torch.equal(ticket.get_parameter(name), weight * masks[name] if name in masks else weight)


def test_network_that_changed_since_cannot_be_rewound(origins: Origins) -> None:
    narrower = build_model(MLP(family="mlp", hidden=(16, 4)), (1, 8, 8), 3)
    with pytest.raises(InputError, match=r"weight-rewinding: hidden.1.bias is not what the original training had; .*"):
        rewind_weights_(narrower, origins("mlp").build())


@pytest.mark.parametrize("epoch", [0, 2])
def test_learning_rates_equal_the_originals_epoch_by_epoch(
    data: TrainingData, origins: Origins, trained: Trained, epoch: int
) -> None:
    module, original = trained["resnet"]
    pruned = narrow(module, (1, 8, 8), lambda _, channels: channels / 2, 4).module
    history = replay_schedule(pruned, data, origins("resnet"), epoch)
    assert [(one["epoch"], one["learning_rate"]) for one in history] == [
        (one["epoch"], one["learning_rate"]) for one in original[epoch:]
    ]


@pytest.mark.parametrize("family", ["mlp", "resnet"])
def test_replay_from_the_original_weights_is_the_original_run(
    data: TrainingData, origins: Origins, trained: Trained, family: str
) -> None:
    """Rows, their order and rates are the same: without a mask, epochs 2 to 4 repeat to the bit."""
    origin = origins(family)
    module = network_at_epoch(origin, data, 2)
    history = replay_schedule(module, data, origin, 2)
    assert equal(module, trained[family][0]) and history == trained[family][1][2:]


def test_new_weights_are_the_initial_ones_in_another_order(origins: Origins, trained: Trained) -> None:
    module, initial = build_model(MLP(family="mlp", hidden=(16, 8)), (1, 8, 8), 3, 9), origins("mlp").build()
    reinitialize_(module, initial, 1)
    for name, weight in module.named_parameters():
        source = initial.get_parameter(name)
        assert torch.equal(weight.flatten().sort().values, source.flatten().sort().values)
        assert not torch.equal(weight, source)
    again, other = origins("mlp").build(), origins("mlp").build()
    reinitialize_(again, initial, 1)
    reinitialize_(other, initial, 2)
    assert equal(module, again) and not equal(module, other)


def test_narrower_network_is_drawn_for_its_own_inputs(origins: Origins, trained: Trained) -> None:
    """Half of the inputs: twice the variance, as the initial law would have it; statistics start anew."""
    initial = origins("resnet").build()
    pruned = narrow(trained["resnet"][0], (1, 8, 8), lambda _, channels: channels / 2, 4).module
    assert not torch.equal(pruned.get_buffer("blocks.2.norm1.running_mean"), torch.zeros(16))
    reinitialize_(pruned, initial, 3)
    inner, before = (one.get_parameter("blocks.2.conv2.weight").detach() for one in (pruned, initial))
    assert inner.shape[1] * 2 == before.shape[1]
    assert float(inner.var()) == pytest.approx(2 * float(before.var()), rel=0.1)
    assert torch.equal(pruned.get_buffer("blocks.2.norm1.running_mean"), torch.zeros(16))
    assert torch.equal(pruned.get_parameter("blocks.2.norm1.weight"), torch.ones(16))


def test_replaced_layer_cannot_be_drawn_anew(origins: Origins) -> None:
    replaced = origins("mlp").build()
    replaced.add_module("output", nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 3)))
    with pytest.raises(InputError, match=r"reinitialize: output.0.weight is not part of the original network"):
        reinitialize_(replaced, origins("mlp").build(), 0)
