"""Taylor scores are the squares of gradient times weight, and channels go by their sums."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from mlites.compression.pruning.structured import narrow, prune_structured
from mlites.compression.pruning.taylor import taylor_scores


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_scores_equal_gradients_worked_out_by_hand() -> None:
    """Softmax minus one-hot, sent back through two layers, on batches of 5 of 10 rows in any order."""
    module = network()
    inputs, labels = torch.randn(10, 4), torch.arange(10) % 3
    found = taylor_scores(module, inputs, labels, 5, seed=3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    first, second = module[0].weight.detach(), module[2].weight.detach()
    expected = [torch.zeros_like(first), torch.zeros_like(second)]
    for batch in (order[:5], order[5:]):
        hidden = inputs[batch] @ first.T + module[0].bias.detach()
        logits = hidden.relu() @ second.T + module[2].bias.detach()
        error = (logits.softmax(1) - F.one_hot(labels[batch], 3)) / 5
        expected[0] += ((error @ second * (hidden > 0)).T @ inputs[batch] * first) ** 2 / 2
        expected[1] += (error.T @ hidden.relu() * second) ** 2 / 2
    torch.testing.assert_close(found["0.weight"], expected[0])
    torch.testing.assert_close(found["2.weight"], expected[1])


def test_score_is_what_the_loss_changes_when_a_weight_goes() -> None:
    """To first order: for small weights, removing one changes the loss by gradient times weight."""
    module = network().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.02)
    inputs, labels = torch.randn(8, 4).double(), torch.arange(8) % 3
    scores = taylor_scores(module, inputs, labels, 8, seed=0)["2.weight"]
    whole = F.cross_entropy(module(inputs), labels)
    for place in ((0, 0), (2, 5), (1, 3)):
        without = copy.deepcopy(module)
        without[2].weight.data[place] = 0
        with torch.no_grad():
            change = float(F.cross_entropy(without(inputs), labels) - whole)
        torch.testing.assert_close(scores[place] ** 0.5, torch.tensor(abs(change)).double(), rtol=0.02, atol=1e-9)


def test_channels_of_least_summed_score_leave() -> None:
    module = network()
    inputs, labels = torch.randn(40, 4), torch.arange(40) % 3
    scores = taylor_scores(module, inputs, labels, 10, seed=0)
    importance = scores["0.weight"].sum(1) + scores["2.weight"].sum(0)
    stays = importance.argsort()[3:].sort().values
    pruned, facts = prune_structured(module, (4,), 0.5, 1, scores=scores)
    assert isinstance(pruned, nn.Sequential)
    assert torch.equal(pruned[0].weight, module[0].weight[stays]) and facts["rates"] == {"0": 0.5}


def test_taylor_keeps_what_magnitude_would_remove() -> None:
    """A unit of large weights that never fires has no effect on the loss."""
    module = network()
    with torch.no_grad():
        module[0].weight[0], module[0].bias[0] = 100.0, -1e6
    inputs, labels = torch.rand(40, 4), torch.arange(40) % 3
    scores = taylor_scores(module, inputs, labels, 40, seed=0)
    by_loss = narrow(module, (4,), lambda _, channels: channels - 1, 1, scores).module
    by_norm = narrow(module, (4,), lambda _, channels: channels - 1, 1).module
    assert float(by_loss.get_parameter("0.weight").detach().max()) < 100
    assert float(by_norm.get_parameter("0.weight").detach().max()) == 100


def test_module_and_its_gradients_are_left_alone() -> None:
    module = network()
    taylor_scores(module, torch.randn(6, 4), torch.arange(6) % 3, 2, seed=0)
    assert module.training and all(parameter.grad is None for parameter in module.parameters())


def test_weights_that_play_no_part_have_no_score() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = network(), nn.Linear(2, 2)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.used(rows)
            return answer

    scores = taylor_scores(Partly(), torch.randn(6, 4), torch.arange(6) % 3, 2, seed=0)
    assert float(scores["spare.weight"].sum()) == 0 and float(scores["used.0.weight"].sum()) > 0
