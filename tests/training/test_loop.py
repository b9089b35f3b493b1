"""Training learns, repeats to the bit, resumes to the bit, and says clearly when it cannot."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.recipe import MLP, ResNet, Training
from mlites.training.loop import TrainingData, evaluate, train

PLAIN = {"precision": "fp32", "batch_size": 16, "learning_rate": 0.05}


def blobs(shape: tuple[int, ...] = (6,), rows: int = 90) -> TrainingData:
    """Three separable classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 3
    centres = torch.randn(3, *shape, generator=generator) * 2
    inputs = centres[labels] + torch.randn(rows, *shape, generator=generator) * 0.7
    return TrainingData(inputs[:60], labels[:60], inputs[60:], labels[60:], (-1.0,) * shape[0])


def network(shape: tuple[int, ...] = (6,)) -> nn.Module:
    if len(shape) == 3:
        return build_model(ResNet(family="resnet", depth=8, width=4), shape, 3, seed=1)
    return build_model(MLP(family="mlp", hidden=(8,)), shape, 3, seed=1)


def quiet(_entry: dict[str, float]) -> None:
    """Report nothing."""


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "learning_rate": 0.02}, {"schedule": "step"}])
def test_it_learns_separable_classes(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    module, data = network(), blobs()
    history = train(module, data, Training(epochs=8, **{**PLAIN, **options}), seed=0)
    assert history[-1]["validation_accuracy"] > 0.9 and history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert not module.training
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].startswith("epoch 1/8  loss ") and "validation" in lines[0]


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, shape: tuple[int, ...], optimizer: str) -> None:
    images = len(shape) == 3
    options = Training(
        epochs=4, **PLAIN, optimizer=optimizer, augmentation=("crop", "flip") if images else (), early_stop=3
    )
    data, whole, parts = blobs(shape), network(shape), network(shape)
    history = train(whole, data, options, seed=3, report=quiet)

    class Stop(Exception):
        pass

    def stop_after(epoch: int) -> Any:
        def report(entry: dict[str, float]) -> None:
            if entry["epoch"] == epoch:
                raise Stop

        return report

    for epoch in (1, 3):
        with pytest.raises(Stop):
            train(parts, data, options, seed=3, checkpoint=tmp_path / "run", report=stop_after(epoch))
        parts = network(shape)
    seen: list[float] = []
    resumed = train(
        parts, data, options, seed=3, checkpoint=tmp_path / "run", report=lambda entry: seen.append(entry["epoch"])
    )
    assert seen == [4] and resumed == history and equal(whole, parts)


def test_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(Path(__file__).parent)!r}]
from safetensors.torch import save_file
from test_loop import PLAIN, blobs, network
from mlites.recipe import Training
from mlites.training.loop import train
kill = int(sys.argv[2])
def report(entry):
    if entry["epoch"] == kill:
        os.kill(os.getpid(), signal.SIGKILL)
module = network((1, 8, 8))
options = Training(epochs=3, **PLAIN, augmentation=("crop",))
train(module, blobs((1, 8, 8)), options, seed=5, checkpoint=Path(sys.argv[1], "checkpoint"), report=report)
save_file(module.state_dict(), sys.argv[1] + "/weights")
"""
    for folder, kills in (("whole", (0,)), ("killed", (2, 0))):
        (tmp_path / folder).mkdir()
        for kill in kills:
            done = subprocess.run([sys.executable, "-c", program, str(tmp_path / folder), str(kill)], env=os.environ)
            assert done.returncode == (-signal.SIGKILL if kill else 0)
    whole, killed = (load_file(tmp_path / folder / "weights") for folder in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["checkpoint", "weights"]


@pytest.mark.parametrize(
    ("options", "seed", "identity"),
    [({"learning_rate": 0.04}, 0, ""), ({}, 1, ""), ({}, 0, "another teacher")],
)
def test_checkpoint_of_another_run_is_ignored(
    tmp_path: Path, options: dict[str, Any], seed: int, identity: str
) -> None:
    data = blobs()
    train(network(), data, Training(epochs=2, **PLAIN), seed=0, checkpoint=tmp_path / "run", report=quiet)
    changed = Training(epochs=2, **{**PLAIN, **options})
    fresh, misled = network(), network()
    train(fresh, data, changed, seed=seed, identity=identity, report=quiet)
    train(misled, data, changed, seed=seed, identity=identity, checkpoint=tmp_path / "run", report=quiet)
    assert equal(fresh, misled)


def test_other_data_or_weights_ignore_the_checkpoint(tmp_path: Path) -> None:
    options, count = Training(epochs=2, **PLAIN), 0

    def report(_entry: dict[str, float]) -> None:
        nonlocal count
        count += 1

    data, other = blobs(), build_model(MLP(family="mlp", hidden=(8,)), (6,), 3, seed=2)
    train(network(), data, options, seed=0, checkpoint=tmp_path / "run", report=report)
    train(network(), data, options, seed=0, checkpoint=tmp_path / "run", report=report)
    assert count == 2  # the second found the run complete
    train(other, data, options, seed=0, checkpoint=tmp_path / "run", report=report)
    assert count == 4
    data.inputs[0, 0] += 1
    train(network(), data, options, seed=0, checkpoint=tmp_path / "run", report=report)
    assert count == 6


@pytest.mark.parametrize("damage", [b"", b"\x80\x04pickle", b"\x00" * 64])
def test_damaged_checkpoint_is_ignored(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "run").write_bytes(damage)
    one, other = network(), network()
    options = Training(epochs=1, **PLAIN)
    train(one, blobs(), options, seed=0, checkpoint=tmp_path / "run", report=quiet)
    train(other, blobs(), options, seed=0, report=quiet)
    assert equal(one, other)


def test_masked_weights_stay_zero_and_the_others_move() -> None:
    module = network()
    mask = torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    weight = module.get_parameter("hidden.0.weight")
    before = weight.detach().clone() * mask
    train(module, blobs(), Training(epochs=2, **PLAIN), 0, masks={"hidden.0.weight": mask}, report=quiet)
    assert bool((weight[~mask] == 0).all()) and bool((weight[mask] != before[mask]).all())


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8)])
def test_run_in_two_parts_equals_the_whole(shape: tuple[int, ...]) -> None:
    """Without momentum, weights are all that an epoch hands on; order, augmentation and rates are the schedule's."""
    images = len(shape) == 3
    options = Training(epochs=4, **PLAIN, momentum=0, augmentation=("crop", "flip") if images else ())
    data, whole, parts = blobs(shape), network(shape), network(shape)
    history = train(whole, data, options, seed=3, report=quiet)
    first = train(parts, data, options, seed=3, end_epoch=3, report=quiet)
    second = train(parts, data, options, seed=3, first_epoch=3, report=quiet)
    assert first + second == history and equal(whole, parts)


def test_part_of_a_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    options = Training(epochs=5, **PLAIN)
    whole, stopped = network(), network()
    history = train(whole, blobs(), options, seed=3, first_epoch=1, end_epoch=4, report=quiet)

    def stop(entry: dict[str, float]) -> None:
        if entry["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, blobs(), options, seed=3, first_epoch=1, end_epoch=4, checkpoint=tmp_path / "run", report=stop)
    resumed, seen = network(), []
    again = train(
        resumed,
        blobs(),
        options,
        seed=3,
        first_epoch=1,
        end_epoch=4,
        checkpoint=tmp_path / "run",
        report=lambda entry: seen.append(entry["epoch"]),
    )
    assert again == history and seen == [4] and equal(whole, resumed)


@pytest.mark.parametrize(("first", "end"), [(3, None), (-1, None), (1, 1), (0, 4)])
def test_epochs_outside_the_schedule_are_refused(first: int, end: int | None) -> None:
    with pytest.raises(ValueError, match=f"epochs {first} to {end} are not a part of the schedule's 3"):
        train(network(), blobs(), Training(epochs=3, **PLAIN), 0, first_epoch=first, end_epoch=end)


def test_mask_schedule_is_asked_evenly_and_held_in_between() -> None:
    module, asked = network(), []
    weight = module.get_parameter("hidden.0.weight")

    def tighten(asking: nn.Module, done: float) -> dict[str, Tensor]:
        assert asking is module
        if asked:
            assert bool((weight[: round(asked[-1] * 8)] == 0).all())
        asked.append(done)
        mask = torch.ones(8, 6, dtype=torch.bool)
        mask[: round(done * 8)] = False
        return {"hidden.0.weight": mask}

    fixed = torch.arange(24).view(3, 8) % 2 == 0
    train(
        module,
        blobs(),
        Training(epochs=2, precision="fp32", batch_size=2, learning_rate=0.01),
        0,
        masks={"output.weight": fixed},
        mask_schedule=tighten,
        report=quiet,
    )
    assert asked == pytest.approx([step / 60 for step in range(0, 60, 3)])  # 30 batches an epoch
    assert bool((weight[:7] == 0).all()) and bool((weight[round(asked[-1] * 8) :] != 0).all())
    assert bool((module.get_parameter("output.weight")[~fixed] == 0).all())


def test_first_step_is_nesterov_with_decay_on_matrices_alone() -> None:
    """One batch, one epoch: against the formula g' = g + wd * w; v = g'; w -= lr * (g' + momentum * v)."""
    data, module = blobs(), network()
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    reference = network()
    F.cross_entropy(reference(data.inputs), data.labels).backward()
    options = Training(
        epochs=1, precision="fp32", batch_size=60, learning_rate=0.1, momentum=0.8, weight_decay=0.01, schedule="step"
    )
    train(module, data, options, seed=0, report=quiet)
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad + (0.01 * start[name] if parameter.dim() > 1 else 0)
        torch.testing.assert_close(module.get_parameter(name), start[name] - 0.1 * (gradient + 0.8 * gradient))


def test_early_stop_restores_the_best_epoch() -> None:
    data, module = blobs(), network()
    options = Training(epochs=30, **{**PLAIN, "learning_rate": 0.9, "batch_size": 4}, early_stop=2)
    history = train(module, data, options, seed=0, report=quiet)
    losses = [entry["validation_loss"] for entry in history]
    assert len(history) < 30 and losses.index(min(losses)) == len(losses) - 3
    _, logits = evaluate(module, data.validation_inputs, data.validation_labels)
    assert float(F.cross_entropy(logits, data.validation_labels)) == min(losses)


def test_own_loss_sees_rows_and_inputs_as_augmented() -> None:
    data = blobs((1, 8, 8))
    seen: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, inputs: Tensor) -> Tensor:
        assert torch.equal(data.labels[rows], labels) and inputs.shape == (len(rows), 1, 8, 8)
        seen.append(rows)
        return F.cross_entropy(logits, labels)

    train(network((1, 8, 8)), data, Training(epochs=2, **PLAIN), 0, loss, report=quiet)
    epochs = torch.cat(seen).split(60)
    assert all(torch.equal(epoch.sort().values, torch.arange(60)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_last_batch_of_one_row_is_left_out() -> None:
    data = blobs((1, 8, 8), rows=120)
    options = Training(epochs=1, precision="fp32", batch_size=59)
    train(network((1, 8, 8)), data, options, 0, report=quiet)  # batch normalization would fail on one row


@pytest.mark.parametrize("learning_rate", [10.0])
def test_divergence_is_one_clear_line(learning_rate: float) -> None:
    options = Training(epochs=20, precision="fp32", batch_size=2, learning_rate=learning_rate, momentum=0.99)
    with pytest.raises(InputError, match=r"training diverged: .* epoch \d+ .*; lower learning_rate \(now 10\)$"):
        train(network(), blobs(), options, 0, report=quiet)


def test_data_that_does_not_suit_is_refused() -> None:
    data = blobs()
    with pytest.raises(InputError, match=r"augmentation crop needs images; these rows have shape \(6,\)"):
        train(network(), data, Training(augmentation=("crop",)), 0)
    one = TrainingData(data.inputs[:1], data.labels[:1], data.validation_inputs, data.validation_labels)
    with pytest.raises(InputError, match="needs 2 training rows and 1 validation row at least, got 1 and 30"):
        train(network(), one, Training(), 0)


def test_training_leaves_the_global_generator_and_settings_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(network(), blobs(), Training(epochs=1, **PLAIN), 0, report=quiet)
    assert torch.equal(torch.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()


def test_accuracy_is_the_share_of_right_rows_however_many_there_are() -> None:
    module = nn.Identity()
    logits = torch.randn(1300, 4)
    labels = logits.argmax(1)
    labels[:325] = (labels[:325] + 1) % 4
    accuracy, found = evaluate(module, logits, labels)
    assert accuracy == pytest.approx(975 / 1300) and torch.equal(found, logits)
