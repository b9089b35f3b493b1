"""The prune pass: every combination of what is removed, when, and how the rest trains again."""

import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from mlites.compression.pruning.learning_rate_rewinding import replay_schedule
from mlites.compression.pruning.magnitude import apply_masks_, magnitude_masks, sparsity, zero_masks
from mlites.compression.pruning.prune import prune_module
from mlites.compression.pruning.rewinding import Origin
from mlites.compression.pruning.structured import prune_structured
from mlites.errors import InputError
from mlites.models.card import ModelCard
from mlites.models.checkpoint import save_model
from mlites.recipe import MLP, Prune, ResNet
from mlites.training.loop import TrainingData, train

SHAPE = (1, 8, 8)
TUNING = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "precision": "fp32"}
Trained = dict[str, tuple[nn.Module, list[dict[str, float]]]]
Origins = Callable[[str], Origin]
Result = tuple[nn.Module, list[dict[str, float]], dict[str, Any]]


def options(**given: Any) -> Prune:
    return Prune.model_validate({"pass": "prune", "training": TUNING, "round_to": 4, **given})


@pytest.fixture
def prune(data: TrainingData, trained: Trained, origins: Origins) -> Callable[..., Result]:
    def run(family: str, **given: Any) -> Result:
        other = {"keep_zeros": given.pop("keep_zeros", False), "checkpoint": given.pop("checkpoint", None)}
        if given.get("method") != "structured":
            given.setdefault("round_to", 8)
        return prune_module(
            given.pop("module", trained[family][0]),
            data,
            options(**given),
            0,
            input_shape=SHAPE,
            origin=origins(family),
            **other,
        )

    return run


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"method": "magnitude", "amount": 0.8}),
    ("mlp", {"method": "magnitude", "amount": 0.8, "schedule": "gradual"}),
    ("mlp", {"method": "magnitude", "amount": 0.8, "schedule": "iterative"}),
    ("mlp", {"method": "layerwise", "amount": 0.7, "rates": "sensitivity", "schedule": "gradual"}),
    ("mlp", {"method": "layerwise", "amount": 0.7, "retrain": "weight-rewinding", "rewind_epoch": 1}),
    ("mlp", {"method": "magnitude", "amount": 0.8, "retrain": "weight-rewinding", "schedule": "iterative"}),
    ("mlp", {"method": "magnitude", "amount": 0.8, "retrain": "reinitialize"}),
    ("resnet", {"method": "n-m"}),
    ("resnet", {"method": "structured", "amount": 0.5}),
    ("resnet", {"method": "structured", "amount": 0.4, "importance": "taylor", "schedule": "iterative", "rounds": 2}),
    ("resnet", {"method": "structured", "amount": 0.4, "rates": "sensitivity", "retrain": "reinitialize"}),
    ("resnet", {"method": "structured", "amount": 0.5, "retrain": "learning-rate-rewinding", "rewind_epoch": 2}),
]
COMMON = {
    "parameters_before",
    "parameters_after",
    "macs_before",
    "macs_after",
    "weights",
    "zeros",
    "sparsity",
    "rates",
    "validation_accuracy_before_tuning",
}


@pytest.mark.parametrize(
    ("family", "given"),
    KINDS,
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_every_kind_leaves_its_input_alone_and_states_the_facts(
    prune: Callable[..., Result], trained: Trained, family: str, given: dict[str, Any]
) -> None:
    module = trained[family][0]
    before = copy.deepcopy(module)
    pruned, history, facts = prune(family, **given)
    assert equal(module, before) and not pruned.training and history
    assert set(facts) >= COMMON and json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert ("sensitivity" in facts) == (given.get("rates") == "sensitivity")
    assert ("rounds" in facts) == (given.get("schedule") == "iterative")
    epochs = [entry["epoch"] for entry in history]
    assert epochs == list(range(int(epochs[0]), int(epochs[0]) + len(epochs)))
    if given["method"] == "structured":
        removed = 1 - facts["channels_after"] / facts["channels_before"]
        assert facts["macs_after"] < facts["macs_before"] and facts["parameters_after"] < facts["parameters_before"]
        assert removed == pytest.approx(given["amount"], abs=0.1)
    else:
        assert facts["sparsity"] == sparsity(pruned)["sparsity"] and facts["macs_after"] == facts["macs_before"]
        if given["method"] != "n-m":
            assert facts["sparsity"] == pytest.approx(given["amount"], abs=0.001)


def test_fine_tuning_is_training_under_the_mask(
    prune: Callable[..., Result], data: TrainingData, trained: Trained
) -> None:
    pruned, history, _ = prune("mlp", method="magnitude", amount=0.8)
    expected = copy.deepcopy(trained["mlp"][0])
    masks = magnitude_masks(expected, 0.8)
    apply_masks_(expected, masks)
    assert train(expected, data, options().training, 0, masks=masks) == history and equal(expected, pruned)


@pytest.mark.parametrize("epoch", [0, 2])
def test_weight_rewinding_trains_the_original_weights_under_the_mask(
    prune: Callable[..., Result], data: TrainingData, trained: Trained, origins: Origins, epoch: int
) -> None:
    found, history, _ = prune("mlp", method="magnitude", amount=0.8, retrain="weight-rewinding", rewind_epoch=epoch)
    origin, masks = origins("mlp"), magnitude_masks(trained["mlp"][0], 0.8)
    ticket = origin.build()
    if epoch:
        train(ticket, data, origin.options, origin.seed, end_epoch=epoch)
    apply_masks_(ticket, masks)
    expected = train(ticket, data, origin.options, origin.seed, masks=masks, first_epoch=epoch)
    assert equal(found, ticket) and history == expected
    assert [one["learning_rate"] for one in history] == [one["learning_rate"] for one in trained["mlp"][1][epoch:]]


def test_learning_rate_rewinding_keeps_the_trained_weights(
    prune: Callable[..., Result], data: TrainingData, trained: Trained, origins: Origins
) -> None:
    given = {"method": "structured", "amount": 0.5, "retrain": "learning-rate-rewinding", "rewind_epoch": 1}
    found, history, _ = prune("resnet", **given)
    expected, _ = prune_structured(trained["resnet"][0], SHAPE, 0.5, 4)
    assert replay_schedule(expected, data, origins("resnet"), 1) == history and equal(found, expected)


def test_control_has_the_same_mask_and_other_weights(prune: Callable[..., Result]) -> None:
    given = {"method": "magnitude", "amount": 0.8}
    kept, _, _ = prune("mlp", **given, retrain="learning-rate-rewinding")
    drawn, history, _ = prune("mlp", **given, retrain="reinitialize")
    assert len(history) == 4
    for name, mask in zero_masks(kept).items():
        assert torch.equal(mask, drawn.get_parameter(name) != 0)
        assert not torch.equal(kept.get_parameter(name), drawn.get_parameter(name))


ZEROS: list[torch.Tensor] = []


class Watched(nn.Module):
    """Notes in each training step which of its weights are zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.output = nn.Linear(64, 16), nn.Linear(16, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            ZEROS.append(torch.cat([self.first.weight.detach().flatten(), self.output.weight.detach().flatten()]) == 0)
        answer: torch.Tensor = self.output(self.first(rows.flatten(1)).relu())
        return answer


def test_gradual_pruning_follows_the_formula_and_never_lets_go(data: TrainingData) -> None:
    """Equation 1 of the paper over three quarters of 12 steps, 6 batches an epoch."""
    given = options(method="magnitude", amount=0.9, schedule="gradual", round_to=8)
    ZEROS.clear()
    pruned, _, facts = prune_module(Watched(), data, given, 0, input_shape=SHAPE)
    steps = np.arange(12) / 12
    formula = 0.9 - 0.9 * (1 - np.minimum(steps / 0.75, 1)) ** 3
    count = 64 * 16 + 16 * 3
    assert [int(zeros.sum()) for zeros in ZEROS] == [round(share * count) for share in formula]
    assert not any(bool((earlier & ~later).any()) for earlier, later in pairwise(ZEROS))
    assert facts["zeros"] == round(0.9 * count)
    assert torch.equal(
        torch.cat([pruned.get_parameter(f"{n}.weight").flatten() for n in ("first", "output")]) == 0, ZEROS[-1]
    )


def test_iterative_rounds_are_geometric_for_weights_and_equal_for_channels(prune: Callable[..., Result]) -> None:
    _, history, facts = prune("mlp", method="magnitude", amount=0.875, schedule="iterative", rounds=3)
    assert [one["removed"] for one in facts["rounds"]] == pytest.approx([0.5, 0.75, 0.875], abs=1e-3)
    assert len(history) == 6
    assert facts["validation_accuracy_before_tuning"] == facts["rounds"][-1]["validation_accuracy_before_tuning"]
    given = {"method": "structured", "amount": 0.6, "schedule": "iterative", "rounds": 3, "round_to": 1}
    _, _, facts = prune("resnet", **given)
    assert [one["removed"] for one in facts["rounds"]] == pytest.approx([0.2, 0.4, 0.6], abs=0.02)


def test_rounds_too_small_to_round_are_made_up_for_later(prune: Callable[..., Result]) -> None:
    given = {"method": "structured", "amount": 0.5, "schedule": "iterative", "rounds": 6, "round_to": 8}
    pruned, _, facts = prune("resnet", **given)
    assert len(facts["rounds"]) < 6 and facts["rounds"][-1]["removed"] == pytest.approx(0.5, abs=0.1)
    assert {layer.out_channels % 8 for layer in pruned.modules() if isinstance(layer, nn.Conv2d)} == {0}


class Idle(nn.Module):
    """Two branches, of which one hardly changes the answer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frail, self.idle = nn.Linear(64, 16), nn.Linear(64, 16)
        self.output, self.other = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.flatten(1)
        answer: torch.Tensor = self.output(self.frail(rows).relu()) + 1e-4 * self.other(self.idle(rows).relu())
        return answer


@pytest.mark.parametrize(("method", "kind"), [("layerwise", ".weight"), ("structured", "")])
def test_sensitive_layers_lose_less(data: TrainingData, method: str, kind: str) -> None:
    """The rates are the table's, and weighted by layer they make the amount."""
    module = Idle()
    with torch.no_grad():
        inputs = data.inputs, data.validation_inputs
        right = TrainingData(inputs[0], module(inputs[0]).argmax(1), inputs[1], module(inputs[1]).argmax(1))
    given = options(method=method, amount=0.6, rates="sensitivity", round_to=8 if kind else 1)
    _, _, facts = prune_module(module, right, given, 0, input_shape=SHAPE)
    assert facts["sensitivity"]["probed_rates"] == [0.3, 0.6, 0.8, 0.9]
    table = facts["sensitivity"]["layers"]
    sizes = {"frail": 1024, "idle": 1024, "output": 48, "other": 48} if kind else {"frail": 16, "idle": 16}
    assert set(table) == {name + kind for name in sizes}
    for name, size in sizes.items():
        assert facts["rates"][name + kind] == pytest.approx(table[name + kind]["rate"], abs=1.001 / size)
    removed = sum(table[name + kind]["rate"] * size for name, size in sizes.items())
    assert removed / sum(sizes.values()) == pytest.approx(0.6, abs=1e-3)
    assert table["idle" + kind]["drops_points"] == [0, 0, 0, 0] and table["frail" + kind]["drops_points"][-1] > 20
    assert table["frail" + kind]["rate"] < 0.4 < 0.8 < table["idle" + kind]["rate"]


def test_zeros_of_an_earlier_pruning_stay_zero(prune: Callable[..., Result], trained: Trained) -> None:
    sparse = copy.deepcopy(trained["resnet"][0])
    apply_masks_(sparse, magnitude_masks(sparse, 0.6))
    narrowed, _, facts = prune("resnet", module=sparse, method="structured", amount=0.5, keep_zeros=True)
    expected, _ = prune_structured(sparse, SHAPE, 0.5, 4)
    for name, mask in zero_masks(expected).items():
        assert bool((narrowed.get_parameter(name)[~mask] == 0).all())
    assert facts["zeros"] == sparsity(expected)["zeros"]
    patterned, _, facts = prune("resnet", module=sparse, method="n-m", keep_zeros=True)
    for name, mask in zero_masks(sparse).items():
        assert bool((patterned.get_parameter(name)[~mask] == 0).all())
    assert facts["pattern"] == "2:4" and facts["sparsity"] > 0.6
    assert facts["kept_whole"] == {"stem.weight": "1 inputs are no multiple of 4"}


def test_fact_that_the_pattern_holds_after_training(prune: Callable[..., Result]) -> None:
    pruned, _, _ = prune("resnet", method="n-m", n=1, m=4)
    for name, weight in pruned.named_parameters():
        if weight.dim() > 1 and name != "stem.weight":
            groups = weight.detach().movedim(1, -1).reshape(-1, 4)
            assert int((groups != 0).sum(1).max()) == 1


@pytest.mark.parametrize("retrain", ["weight-rewinding", "learning-rate-rewinding", "reinitialize"])
def test_rewinding_without_an_original_training_is_refused(data: TrainingData, trained: Trained, retrain: str) -> None:
    given = options(method="magnitude", retrain=retrain, round_to=8)
    with pytest.raises(InputError, match=rf"retrain: {retrain} repeats the original training, but .* fine-tune"):
        prune_module(trained["mlp"][0], data, given, 0, input_shape=SHAPE)


def test_rewinding_beyond_the_schedule_is_refused(prune: Callable[..., Result]) -> None:
    with pytest.raises(InputError, match="rewind_epoch must be below the 4 epochs of the original training, got 4"):
        prune("mlp", method="magnitude", retrain="learning-rate-rewinding", rewind_epoch=4)


def test_early_stop_is_refused_with_gradual_pruning() -> None:
    with pytest.raises(ValidationError, match="early_stop may return to an epoch before gradual pruning is done"):
        options(method="magnitude", schedule="gradual", round_to=8, training={**TUNING, "early_stop": 2})


PROGRAM = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from mlites.models.checkpoint import load_model
folder, names = Path(sys.argv[1]), sys.argv[2:]
rows = load_file(folder / "rows")["rows"]
torch.set_num_threads(1)
with torch.no_grad():
    save_file({name: load_model(folder / name)[0](rows) for name in names}, folder / "answers")
"""


def test_pruned_networks_reload_in_a_fresh_process(
    prune: Callable[..., Result], data: TrainingData, tmp_path: Path
) -> None:
    save_file({"rows": data.validation_inputs}, tmp_path / "rows")
    expected = {}
    for number in (1, 7, 9):  # gradual, n-m, channels by Taylor scores
        family, given = KINDS[number]
        pruned, _, _ = prune(family, **given)
        architecture: MLP | ResNet = MLP(family="mlp", hidden=(16, 8))
        if family == "resnet":
            architecture = ResNet(family="resnet", depth=8, width=8)
        card = ModelCard(
            form="torch",
            architecture=architecture.model_dump(mode="json"),
            input_shape=SHAPE,
            classes=("a", "b", "c"),
            preprocessing={"scale": 1.0, "mean": [0.0], "std": [1.0]},
        )
        save_model(tmp_path / str(number), pruned, card)
        with torch.no_grad():
            expected[str(number)] = pruned(data.validation_inputs)
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), *expected], check=True, env=os.environ)
    answers = load_file(tmp_path / "answers")
    assert all(torch.equal(answers[name], rows) for name, rows in expected.items())


RESUMED: list[tuple[str, dict[str, Any], int]] = [
    ("mlp", {"method": "magnitude", "amount": 0.8, "schedule": "gradual"}, 1),
    ("resnet", {"method": "structured", "amount": 0.5, "schedule": "iterative", "importance": "taylor"}, 3),
    (
        "mlp",
        {
            "method": "magnitude",
            "amount": 0.9,
            "schedule": "iterative",
            "rounds": 2,
            "retrain": "weight-rewinding",
            "rewind_epoch": 2,
        },
        3,
    ),
]


class Closing(io.StringIO):
    """A terminal that goes away after a number of epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def write(self, text: str) -> int:
        self.epochs -= text.startswith("epoch ")
        if self.epochs == 0:
            raise BrokenPipeError
        return len(text)


@pytest.mark.parametrize(("family", "given", "stop"), RESUMED, ids=["gradual", "channels", "rewinding"])
def test_interrupted_pass_goes_on_to_identical_weights(
    prune: Callable[..., Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
    given: dict[str, Any],
    stop: int,
) -> None:
    """Stopped after an epoch in the middle of a training, of which earlier ones are not trained again."""
    whole, history, facts = prune(family, **given)
    lines = capsys.readouterr().out.count("epoch ")

    with redirect_stdout(Closing(stop)), pytest.raises(BrokenPipeError):
        prune(family, **given, checkpoint=tmp_path / "place")
    resumed, again, same = prune(family, **given, checkpoint=tmp_path / "place")
    assert equal(whole, resumed) and again == history and same == facts
    assert capsys.readouterr().out.count("epoch ") == lines - stop


def test_network_that_cannot_be_pruned_is_refused_by_layer(data: TrainingData) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.output = nn.Linear(8, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            tokens = self.embed(rows.flatten(1).view(-1, 8, 8))
            answer: torch.Tensor = self.output(self.attention(tokens, tokens, tokens)[0].mean(1))
            return answer

    with pytest.raises(InputError, match=r"no channels can be pruned: all hang on layers that stay whole: attention"):
        prune_module(Attention(), data, options(method="structured"), 0, input_shape=SHAPE)
    pruned, _, facts = prune_module(Attention(), data, options(method="magnitude", round_to=8), 0, input_shape=SHAPE)
    assert facts["sparsity"] == pytest.approx(0.5, abs=0.01) and "attention.in_proj_weight" in facts["rates"]
    assert sparsity(pruned)["zeros"] == facts["zeros"]
