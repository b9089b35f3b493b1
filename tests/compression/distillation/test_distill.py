"""Every technique trains any student that it fits, leaves its inputs alone, resumes to the bit, and says what paid."""

import copy
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlites.compression.distillation.distill import COMPARISONS, distill_module
from mlites.compression.pruning.magnitude import prune_magnitude, sparsity
from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.models.card import ModelCard
from mlites.models.checkpoint import save_model
from mlites.recipe import MLP, Distill, ResNet
from mlites.training.loop import TrainingData, train
from tests.compression.distillation.networks import Staged, Transformer, Unsteady
from tests.compression.users_networks import Excited, Inception, Patches

METHODS = ["soft-targets", "hints", "attention", "relational", "decoupled", "triple"]
NARROW = ResNet(family="resnet", depth=8, width=4)
ROOT = Path(__file__).parents[3]


def options(method: str = "soft-targets", **changed: Any) -> Distill:
    training = {"epochs": 2, "batch_size": 32, "precision": "fp32", **changed.pop("training", {})}
    return Distill.model_validate(
        {"pass": "distill", "method": method, "control": False, "training": training, **changed}
    )


def narrow(seed: int = 1) -> nn.Module:
    return build_model(NARROW, (1, 8, 8), 3, seed)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("method", METHODS)
def test_student_learns_from_a_teacher_who_stays_the_same(
    method: str, tutor: nn.Module, pictures: TrainingData
) -> None:
    teacher, student = copy.deepcopy(tutor), narrow()
    result, history, facts = distill_module(teacher, student, pictures, options(method), 3)
    assert same(teacher, tutor) and same(student, narrow())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    assert result.state_dict().keys() == student.state_dict().keys() and not same(result, student)
    assert not result.training and len(history) == 2
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert ("compared_layers" in facts) == (method in COMPARISONS)
    again, _, facts_again = distill_module(teacher, student, pictures, options(method), 3)
    assert same(again, result) and facts_again == facts


@pytest.mark.parametrize("method", METHODS)
def test_student_that_is_its_teacher_has_nothing_to_learn(
    method: str, tutor: nn.Module, pictures: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluation mode, without regressor, each term is zero and so is its gradient."""
    frozen = copy.deepcopy(tutor).eval()
    monkeypatch.setattr(frozen, "train", lambda _mode=True: frozen)  # batch statistics would tell the two apart
    chosen = options(method, soft_weight=1.0, training={"epochs": 1, "weight_decay": 0.0, "learning_rate": 1e-6})
    _, history, _ = distill_module(tutor, frozen, pictures, chosen, 0)
    if method == "hints":  # its regressor has to learn the identity first
        assert history[0]["train_loss"] > 0.1
    else:
        assert history[0]["train_loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("method", list(COMPARISONS))
def test_inner_term_changes_the_student_and_its_weight_counts(
    method: str, tutor: nn.Module, pictures: TrainingData
) -> None:
    results = [
        distill_module(tutor, narrow(), pictures, options(name, training={"epochs": 1}, **weight), 0)[0]
        for name, weight in (
            ("soft-targets", {}),
            (method, {"feature_weight": 1e-3}),
            (method, {"feature_weight": 5.0}),
        )
    ]
    assert not same(results[0], results[1]) and not same(results[1], results[2])


USERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: build_model(MLP(family="mlp", hidden=(16,)), (1, 8, 8), 3),
    "resnet": narrow,
    "staged": Staged,
    "transformer": Transformer,
    "inception": Inception,
    "excited": Excited,
    "patches": Patches,
}
WITHOUT_MAPS = ("mlp", "transformer")
PAIRS = [
    *(("resnet", "mlp"), ("mlp", "staged"), ("staged", "transformer"), ("transformer", "resnet")),
    *(("resnet", "inception"), ("inception", "excited"), ("excited", "patches")),
]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
@pytest.mark.parametrize("method", METHODS)
def test_any_pair_works_or_is_refused_with_the_reason(
    method: str, teacher: str, student: str, pictures: TrainingData
) -> None:
    torch.manual_seed(0)
    networks = USERS[teacher](), USERS[student]()
    chosen = options(method, training={"epochs": 1, "augmentation": ("crop",)})
    flat = [one for name, one in zip((teacher, student), networks, strict=True) if name in WITHOUT_MAPS]
    if method == "attention" and flat:
        with pytest.raises(InputError, match=rf"\({type(flat[0]).__name__}\) has no maps to compare"):
            distill_module(*networks, pictures, chosen, 0)
        return
    result, _, _ = distill_module(*networks, pictures, chosen, 0)
    assert result(pictures.inputs[:5]).shape == (5, 3)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "attention"])
def test_tables_work(method: str, table: TrainingData) -> None:
    teacher, student = (build_model(MLP(family="mlp", hidden=hidden), (64,), 3) for hidden in ((32, 16), (8,)))
    result, _, _ = distill_module(teacher, student, table, options(method), 0)
    assert result(table.inputs[:5]).shape == (5, 3)


def test_student_in_bfloat16_repeats_to_the_bit(tutor: nn.Module, pictures: TrainingData) -> None:
    chosen = options("attention", training={"precision": "bf16", "augmentation": ("crop",), "epochs": 1})
    first, second = (distill_module(tutor, narrow(), pictures, chosen, 0)[0] for _ in range(2))
    assert same(first, second)


def test_trained_student_keeps_its_zeros(tutor: nn.Module, pictures: TrainingData) -> None:
    pruned, before = prune_magnitude(tutor, 0.8)
    chosen = options("hints", control=True)
    result, _, facts = distill_module(tutor, pruned, pictures, chosen, 0, keep_zeros=True)
    assert sparsity(result) == before and not same(result, pruned)
    free, _, _ = distill_module(tutor, pruned, pictures, options(), 0)
    assert sparsity(free)["zeros"] < before["zeros"]
    assert facts["control_validation_accuracy"] > 0.4


def test_facts_say_what_the_teacher_gave(tutor: nn.Module, pictures: TrainingData) -> None:
    chosen = options("attention", student=NARROW, initialize="teacher", control=True, training={"epochs": 1})
    student = build_model(ResNet(family="resnet", depth=8, width=8), (1, 8, 8), 3, seed=1)
    result, _, facts = distill_module(tutor, student, pictures, chosen, 0)
    assert facts["initialized"]["blocks.1"] == "blocks.2" and facts["initialized_fraction"] == 1
    assert facts["compared_layers"][:2] == [["blocks.0", "blocks.1"], ["blocks.1", "blocks.3"]]
    with torch.no_grad():
        ours, theirs = (one.eval()(pictures.validation_inputs).argmax(1) for one in (result, copy.deepcopy(tutor)))
    assert facts["teacher_validation_accuracy"] == pytest.approx(
        float((theirs == pictures.validation_labels).float().mean())
    )
    assert facts["agreement"] == pytest.approx(float((ours == theirs).float().mean()))
    gain = float((ours == pictures.validation_labels).float().mean()) - facts["control_validation_accuracy"]
    assert facts["gain_points"] == pytest.approx(100 * gain, abs=1e-4)
    assert isinstance(facts["paid"], bool)


def test_control_starts_from_the_teachers_layers_too(tutor: nn.Module, pictures: TrainingData) -> None:
    """With soft targets that do not count, student and control are one and the same."""
    chosen = options(student=NARROW, initialize="teacher", control=True, soft_weight=0.0)
    student = build_model(ResNet(family="resnet", depth=8, width=8), (1, 8, 8), 3, seed=1)
    _, _, facts = distill_module(tutor, student, pictures, chosen, 0)
    assert (facts["gain_points"], facts["p_value"], facts["paid"]) == (0.0, 1.0, False)


@pytest.mark.parametrize(
    ("teacher", "method", "message"),
    [
        (build_model(NARROW, (1, 8, 8), 4), "triple", r"must know the same classes, but .*ResNetClassifier\) gives 4"),
        (nn.Linear(7, 3), "soft-targets", r"^the teacher \(Linear\) fails on rows of shape \(1, 8, 8\)"),
    ],
)
def test_teacher_that_does_not_fit_is_refused(
    teacher: nn.Module, method: str, message: str, pictures: TrainingData
) -> None:
    with pytest.raises(InputError, match=message):
        distill_module(teacher, narrow(), pictures, options(method), 0)


def test_layer_that_training_leaves_out_is_named(tutor: nn.Module, pictures: TrainingData) -> None:
    with pytest.raises(InputError, match=r"^layer quiet did not run in training"):
        distill_module(tutor, Unsteady(), pictures, options("hints"), 0)


def fresh(program: str, *, succeeds: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=succeeds
    )


def test_distilled_model_reloads_in_a_fresh_process_with_identical_outputs(
    tutor: nn.Module, pictures: TrainingData, tmp_path: Path
) -> None:
    rows = pictures.validation_inputs
    outputs: dict[str, Tensor] = {}
    for method in METHODS:
        result, _, _ = distill_module(tutor, narrow(), pictures, options(method, training={"epochs": 1}), 0)
        card = ModelCard(
            form="torch",
            architecture=NARROW.model_dump(mode="json"),
            input_shape=(1, 8, 8),
            classes=tuple("abc"),
            preprocessing={"scale": 1.0, "mean": [0.0], "std": [1.0]},
        )
        save_model(tmp_path / method, result, card)
        outputs[method] = result(rows).detach()
    save_file({"rows": rows.contiguous(), **outputs}, tmp_path / "outputs")
    program = f"""
import torch
from pathlib import Path
from safetensors.torch import load_file
from mlites.models.checkpoint import load_model
folder = Path({str(tmp_path)!r})
expected = load_file(folder / "outputs")
torch.set_num_threads(1)
for method in {METHODS!r}:
    module, _ = load_model(folder / method)
    print(method, torch.equal(module(expected["rows"]), expected[method]))
"""
    assert fresh(program).stdout.split("\n")[:-1] == [f"{method} True" for method in METHODS]


class Stopped(Exception):
    """Raised at a line of output, which a run prints when an epoch is safe."""


class StopAt(io.StringIO):
    """Output that stops the run at a line."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def write(self, text: str) -> int:
        """Raise at the line."""
        if text.startswith(self.line):
            raise Stopped
        return super().write(text)


@pytest.mark.parametrize("method", ["hints", "attention", "triple"])
def test_run_that_is_stopped_twice_ends_with_the_same_bits(
    method: str, tutor: nn.Module, pictures: TrainingData, tmp_path: Path
) -> None:
    chosen = options(method, control=True, training={"epochs": 3, "augmentation": ("crop", "flip")})
    whole, history, facts = distill_module(tutor, narrow(), pictures, chosen, 3)
    for line in ("epoch 2/", "without the teacher: epoch 1/"):
        with redirect_stdout(StopAt(line)), pytest.raises(Stopped):
            distill_module(tutor, narrow(), pictures, chosen, 3, checkpoint=tmp_path / "run")
    with redirect_stdout(io.StringIO()) as output:
        resumed = distill_module(tutor, narrow(), pictures, chosen, 3, checkpoint=tmp_path / "run")
    assert same(resumed[0], whole) and resumed[1:] == (history, facts)
    printed = [line.partition("  loss")[0] for line in output.getvalue().splitlines()]
    assert printed == [f"without the teacher: epoch {number}/3" for number in (2, 3)]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from mlites.compression.distillation.distill import distill_module
from mlites.models.build import build_model
from mlites.recipe import Distill
from mlites.training.loop import TrainingData
folder = Path({folder!r})
torch.set_num_threads(1)
class Output:
    def write(self, text):
        if text.startswith("epoch 2/"):
            os.kill(os.getpid(), signal.SIGKILL)
    def flush(self): pass
    def isatty(self): return False
sys.stdout = Output()
stored = load_file(folder / "given")
data = TrainingData(*(stored[name] for name in ("x", "y", "vx", "vy")), padding=(0.0,))
resnet = lambda depth, width, seed: build_model(dict(family="resnet", depth=depth, width=width), (1, 8, 8), 3, seed)
teacher = resnet(14, 8, 0)
teacher.load_state_dict({{name[2:]: tensor for name, tensor in stored.items() if name.startswith("t.")}})
options = Distill.model_validate_json((folder / "options.json").read_text())
distill_module(teacher, resnet(8, 4, 1), data, options, 3, checkpoint=folder / "run")
"""


def test_killed_process_is_taken_up_by_another_with_the_same_bits(
    tutor: nn.Module, pictures: TrainingData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = options("hints", training={"epochs": 3, "augmentation": ("crop", "flip")})
    (tmp_path / "options.json").write_text(chosen.model_dump_json(by_alias=True))
    given = {f"t.{name}": tensor.contiguous() for name, tensor in tutor.state_dict().items()}
    values = (pictures.inputs, pictures.labels, pictures.validation_inputs, pictures.validation_labels)
    given |= {name: tensor.clone() for name, tensor in zip(("x", "y", "vx", "vy"), values, strict=True)}
    save_file(given, tmp_path / "given")
    done = fresh(KILLED.format(folder=str(tmp_path)), succeeds=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole, history, _ = distill_module(tutor, narrow(), pictures, chosen, 3)
    capsys.readouterr()
    resumed, again, _ = distill_module(tutor, narrow(), pictures, chosen, 3, checkpoint=tmp_path / "run")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["3/3"]
    assert same(resumed, whole) and again == history


def test_checkpoint_of_another_teacher_does_not_count(tutor: nn.Module, pictures: TrainingData, tmp_path: Path) -> None:
    other = copy.deepcopy(tutor)
    train(other, pictures, options().training, 9, report=lambda _: None)
    for teacher in (other, tutor):
        result, _, _ = distill_module(teacher, narrow(), pictures, options(), 0, checkpoint=tmp_path / "run")
    assert same(result, distill_module(tutor, narrow(), pictures, options(), 0)[0])
