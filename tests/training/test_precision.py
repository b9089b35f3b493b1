"""bfloat16 is chosen by measurement, once, where the processor has it."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mlites.recipe import Training
from mlites.training import precision
from mlites.training.loop import TrainingData, train
from mlites.training.precision import choose_precision


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "LEAST_MACS", 2)
    monkeypatch.setattr(precision, "_processor", lambda field: "fpu avx512_bf16" if field == "flags" else "Test CPU")
    return tmp_path / "mlites"


def step_that_takes(seconds: dict[str, float], calls: list[str]) -> precision.Step:
    def step(module: nn.Module, kind: precision.Precision) -> Tensor:
        calls.append(kind)
        time.sleep(seconds[kind])  # the thing measured
        return module(torch.ones(1, 2)).sum()

    return step


@pytest.mark.parametrize(("bf16", "expected"), [(0.004, "bf16"), (0.011, "fp32"), (0.03, "fp32")])
def test_bf16_needs_a_clear_gain(bf16: float, expected: str, home: Path) -> None:
    module, calls = nn.Linear(2, 1), list[str]()
    step = step_that_takes({"fp32": 0.012, "bf16": bf16}, calls)
    assert choose_precision("auto", module, step, [1, 2]) == expected
    assert calls[1:5] == ["fp32", "bf16", "fp32", "bf16"]  # interleaved
    assert list(json.loads((home / "precision.json").read_text()).values()) == [expected]
    assert module.weight.grad is None


def test_choice_is_remembered_for_network_and_shape(home: Path) -> None:
    calls: list[str] = []
    first = step_that_takes({"fp32": 0.012, "bf16": 0.002}, calls)
    assert choose_precision("auto", nn.Linear(2, 1), first, [1, 2]) == "bf16"
    count = len(calls)
    assert choose_precision("auto", nn.Linear(2, 1), first, [1, 2]) == "bf16"
    assert len(calls) == count + 1  # the count of its work alone
    slower = step_that_takes({"fp32": 0.002, "bf16": 0.012}, calls)
    assert choose_precision("auto", nn.Linear(2, 1), slower, [2, 2]) == "fp32"
    assert sorted(json.loads((home / "precision.json").read_text()).values()) == ["bf16", "fp32"]


def test_damaged_memory_is_measured_anew(home: Path) -> None:
    home.mkdir()
    (home / "precision.json").write_text("[")
    step = step_that_takes({"fp32": 0.012, "bf16": 0.002}, [])
    assert choose_precision("auto", nn.Linear(2, 1), step, []) == "bf16"


def test_processor_without_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(precision, "_processor", lambda _field: "fpu avx2")
    calls: list[str] = []
    assert choose_precision("auto", nn.Linear(2, 1), step_that_takes({}, calls), []) == "fp32"
    assert calls == [] and not (home / "precision.json").exists()


def test_small_work_is_fp32_without_a_measurement(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LEAST_MACS", 3)  # the step's matrix product, 1x2 by 2x1, has two
    calls: list[str] = []
    step = step_that_takes({"fp32": 0.0, "bf16": 0.0}, calls)
    assert choose_precision("auto", nn.Linear(2, 1), step, []) == "fp32"
    assert calls == ["fp32"] and not home.exists()


def test_an_unwritable_cache_is_no_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert choose_precision("auto", nn.Linear(2, 1), step_that_takes({"fp32": 0.012, "bf16": 0.002}, []), []) == "bf16"


def test_bf16_training_stays_near_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    inputs = torch.randn(64, 4, generator=generator) + 2 * labels[:, None]
    data, losses = TrainingData(inputs, labels, inputs, labels), []
    for kind in ("fp32", "bf16"):
        torch.manual_seed(0)
        module = nn.Linear(4, 2)
        options = Training(epochs=3, precision=kind, batch_size=16, learning_rate=0.05)
        losses.append(train(module, data, options, 0, report=lambda _entry: None)[-1]["validation_loss"])
        assert module.weight.dtype == torch.float32
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_auto_trains_the_same_as_the_precision_it_settles_on(home: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(32, 4, generator=generator), torch.arange(32) % 2
    data, weights = TrainingData(inputs, labels, inputs, labels), []
    for kind in ("auto", None):
        torch.manual_seed(0)
        module = nn.Linear(4, 2)
        kind = kind or next(iter(json.loads((home / "precision.json").read_text()).values()))
        train(module, data, Training(epochs=2, precision=kind, batch_size=8), 0, report=lambda _entry: None)
        weights.append(module.weight)
    assert torch.equal(*weights)
