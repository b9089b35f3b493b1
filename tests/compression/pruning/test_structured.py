"""Structured pruning removes whole channels, and nothing else changes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.pruning.structured import prune_structured
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.recipe import MLP, MobileNetV3, ResNet


def trained_like(module: nn.Module) -> nn.Module:
    """Give normalization layers statistics, as training would."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.5
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return module.eval()


def test_pruned_mlp_is_the_dense_one_with_its_weakest_units_silenced() -> None:
    module = build_model(MLP(family="mlp", hidden=(12,)), (5,), 3, seed=0).eval()
    pruned, facts = prune_structured(module, (5,), 0.5, round_to=1)
    first, last = module.hidden[0].weight.detach(), module.output.weight.detach()
    incoming, outgoing = first.square().sum(1), last.square().sum(0)
    strength = incoming / incoming.mean() + outgoing / outgoing.mean()
    silenced = copy.deepcopy(module)
    silenced.output.weight.data[:, strength.argsort()[:6]] = 0
    rows = torch.randn(9, 5)
    torch.testing.assert_close(pruned(rows), silenced(rows))
    assert facts["channels_before"] == 12 and facts["channels_after"] == 6
    assert facts["parameters_after"] == 5 * 6 + 6 + 6 * 3 + 3 and facts["macs_after"] == 5 * 6 + 6 * 3


def test_pruned_resnet_is_the_dense_one_with_the_same_channels_silenced() -> None:
    """A silent channel is zero after the last normalization on every path that leads to it."""
    module = trained_like(build_model(ResNet(family="resnet", depth=8, width=8), (1, 8, 8), 3, seed=0))
    for name, weight in module.named_parameters():  # make some channels weakest everywhere, so they must be chosen
        owner, _, kind = name.rpartition(".")
        norms = owner.endswith(("norm", "norm1", "norm2", "shortcut.1"))
        if norms:
            weight.data[::2] = 0
        elif kind == "weight" and weight.dim() == 4:
            weight.data[::2] *= 1e-3
    pruned, facts = prune_structured(module, (1, 8, 8), 0.5, round_to=4)
    rows = torch.randn(6, 1, 8, 8)
    torch.testing.assert_close(pruned(rows), module(rows), rtol=1e-4, atol=1e-4)
    assert facts["channels_after"] * 2 == facts["channels_before"] and facts["kept_whole"] == {}
    half = build_model(ResNet(family="resnet", depth=8, width=4), (1, 8, 8), 3)
    assert count_cost(pruned, (1, 8, 8)) == count_cost(half, (1, 8, 8))


@pytest.mark.parametrize(("amount", "round_to"), [(0.3, 4), (0.5, 8), (0.7, 8), (0.25, 1), (0.9, 2)])
def test_amount_is_the_share_removed_and_widths_are_multiples(amount: float, round_to: int) -> None:
    module = trained_like(build_model(ResNet(family="resnet", depth=14, width=16), (3, 8, 8), 10, seed=0))
    pruned, facts = prune_structured(module, (3, 8, 8), amount, round_to)
    removed = 1 - facts["channels_after"] / facts["channels_before"]
    assert removed == pytest.approx(amount, abs=0.03)
    widths = {layer.out_channels for layer in pruned.modules() if isinstance(layer, nn.Conv2d)}
    assert all(width % round_to == 0 for width in widths)
    assert pruned(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_squeeze_and_excitation_follows_the_channels_it_weighs() -> None:
    """MobileNetV3: depthwise convolutions, residuals, and layers that see the mean of every channel."""
    module = trained_like(build_model(MobileNetV3(family="mobilenet-v3", width=0.25), (1, 16, 16), 3, seed=0))
    pruned, facts = prune_structured(module, (1, 16, 16), 0.5, 8)
    removed = 1 - facts["channels_after"] / facts["channels_before"]
    assert facts["kept_whole"] == {} and removed == pytest.approx(0.5, abs=0.03)
    assert facts["macs_after"] < 0.5 * facts["macs_before"] and pruned(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_input_is_left_unchanged() -> None:
    module = build_model(ResNet(family="resnet", depth=8, width=8), (1, 8, 8), 3, seed=0).train()
    before = copy.deepcopy(module.state_dict())
    pruned, _ = prune_structured(module, (1, 8, 8), 0.5)
    assert module.training and pruned.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_too_narrow_to_round_is_refused() -> None:
    module = build_model(MLP(family="mlp", hidden=(8,)), (5,), 3)
    with pytest.raises(InputError, match=r"amount 0.2 .* multiples of round_to 8, removes no channel; raise amount"):
        prune_structured(module, (5,), 0.2, round_to=8)
    with pytest.raises(ValueError, match="amount must be above 0 and below 1, got 1"):
        prune_structured(module, (5,), 1.0)


def test_network_without_hidden_layer_is_refused() -> None:
    with pytest.raises(InputError, match="no channels can be pruned: there is no hidden layer"):
        prune_structured(nn.Linear(5, 3), (5,), 0.5)


class Depthwise(nn.Module):
    """A depthwise convolution between two pointwise ones, and a learned activation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.activation = nn.PReLU(16)
        self.project = nn.Conv2d(16, 8, 1)
        self.output = nn.Linear(8 * 16, 3)

    def forward(self, rows: Tensor) -> Tensor:
        values = self.project(self.activation(self.depthwise(self.expand(rows))))
        return self.output(F.relu(values).flatten(1))


def test_depthwise_layers_follow_their_neighbours() -> None:
    pruned, facts = prune_structured(Depthwise(), (2, 4, 4), 0.5, round_to=2)
    assert isinstance(pruned, Depthwise)
    assert (pruned.depthwise.groups, pruned.depthwise.out_channels, pruned.project.in_channels) == (8, 8, 8)
    assert pruned.activation.num_parameters == 8 and pruned.output.in_features == 4 * 16
    assert facts["channels_after"] == 12 and facts["kept_whole"] == {}


class Grouped(nn.Module):
    """Grouped convolution and group normalization beside a plain branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.plain = nn.Conv2d(8, 16, 3)
        self.output = nn.Linear(16, 3)

    def forward(self, rows: Tensor) -> Tensor:
        values = F.relu(self.norm(self.grouped(F.relu(self.stem(rows)))))
        return self.output(F.relu(self.plain(values)).mean((2, 3)))


def test_grouped_layers_stay_whole_and_are_named() -> None:
    pruned, facts = prune_structured(Grouped(), (1, 6, 6), 0.5, round_to=4)
    assert isinstance(pruned, Grouped) and pruned.plain.out_channels == 8 and pruned.grouped.out_channels == 8
    reason = "grouped (Conv2d of 2 groups)"
    assert facts["kept_whole"] == dict.fromkeys(("grouped", "norm", "stem"), reason) and facts["channels_before"] == 16


class HandWrittenAttention(nn.Module):
    """Two heads whose sizes stand in the code, so that taking channels out breaks it; and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.hidden = nn.Linear(8, 16)
        self.output = nn.Linear(16, 3)

    def forward(self, rows: Tensor) -> Tensor:
        tokens = self.embed(rows.view(-1, 5, 4))
        q, k, v = (layer(tokens).view(-1, 5, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (q @ k.transpose(2, 3) / math.sqrt(4)).softmax(3)
        mixed = (weights @ v).transpose(1, 2).reshape(-1, 5, 8)
        return self.output(F.relu(self.hidden(mixed.mean(1))))


def test_what_breaks_when_pruned_stays_whole() -> None:
    pruned, facts = prune_structured(HandWrittenAttention(), (20,), 0.5, round_to=4)
    assert isinstance(pruned, HandWrittenAttention) and pruned.hidden.out_features == 8
    reason = "the network no longer runs without some of its channels"
    assert facts["kept_whole"] == dict.fromkeys(("key", "query", "value"), reason)
    assert pruned(torch.randn(3, 20)).shape == (3, 3)


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.output = nn.Linear(4, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, rows: Tensor) -> Tensor:
        return self.output(F.relu(self.first(rows)) * self.gain)


def test_parameter_of_the_users_own_is_the_stated_obstacle() -> None:
    with pytest.raises(InputError, match=r"no channels can be pruned: .*parameter outside of any layer"):
        prune_structured(OwnParameter(), (4,), 0.5, round_to=1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embed, self.output = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        tokens = self.embed(rows.view(-1, 5, 4))
        return self.output(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_attention_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"no channels can be pruned: .*attention"):
        prune_structured(Attention(), (20,), 0.5, round_to=1)


def test_concatenated_branches_keep_their_places() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 8, 3)
            self.output = nn.Linear(12, 3)

        def forward(self, rows: Tensor) -> Tensor:
            joined = torch.cat([self.one(rows), self.two(rows)], 1)
            return self.output(F.relu(joined).mean((2, 3)))

    torch.manual_seed(0)
    module = Branches()
    for layer, silent in ((module.one, [0, 3]), (module.two, [1, 2, 5, 7])):
        layer.weight.data[silent] = 0
        layer.bias.data[silent] = 0
    module.output.weight.data[:, [0, 3, 5, 6, 9, 11]] *= 1e-3
    pruned, _ = prune_structured(module, (1, 6, 6), 0.5, round_to=1)
    rows = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(pruned(rows), module(rows))


def test_network_that_does_not_take_the_rows_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not run on rows of shape \(7,\)"):
        prune_structured(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)), (7,), 0.5)


def test_cost_counts_each_kind_of_layer() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, groups=2, bias=False),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(4, 1, 1),
    )
    cost = count_cost(module, (2, 5, 5))
    grouped, transposed, pointwise = 6 * 9 * 1 * 9, 6 * 9 * 4 * 4, 36 * 4
    assert cost["macs"] == grouped + transposed + pointwise
