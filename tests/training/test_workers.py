"""Workers take the steps that one alone would take; the same seed and number of them give the same bits."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlites.errors import InputError
from mlites.models.build import build_model
from mlites.recipe import ResNet, Training
from mlites.training.loop import TrainingData, train
from mlites.training.resume import Epoch
from mlites.training.workers import LostWorker, Workers
from tests.training.in_threads import together
from tests.training.test_loop import PLAIN, blobs, equal, network, quiet

PICTURES = (1, 8, 8)
OPTIONS = Training(epochs=2, **PLAIN, augmentation=("crop", "flip"))
NETWORK = network(PICTURES)  # not made in a thread: its weights are drawn from the process's generator


def run(workers: Workers | None, options: Training = OPTIONS, **more: Any) -> tuple[nn.Module, list[Epoch]]:
    module = copy.deepcopy(NETWORK)
    return module, train(module, blobs(PICTURES), options, seed=3, workers=workers, **{"report": quiet, **more})


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("batch_size", [16, 23])
@pytest.mark.parametrize("count", [2, 3])
def test_together_they_take_the_steps_of_one(count: int, batch_size: int) -> None:
    """Also where a batch cannot be shared evenly: 16 rows by 3, a last batch of 12 or 14."""
    options = OPTIONS.model_copy(update={"batch_size": batch_size})
    alone, history = run(None, options)
    results = together(count, lambda workers: run(workers, options))
    assert all(equal(results[0][0], module) for module, _ in results)
    assert difference(alone, results[0][0]) < 1e-5
    for entry, expected in zip(results[0][1], history, strict=True):
        assert entry == pytest.approx(expected, rel=1e-4, abs=0.04)  # one validation row of 30
        assert entry["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


def test_same_seed_and_workers_give_the_same_bits() -> None:
    (first, _), (again, _) = (together(3, run)[0] for _ in range(2))
    assert equal(first, again)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_workers_end_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    options = OPTIONS.model_copy(update={"epochs": 4, "optimizer": optimizer, "early_stop": 3})

    class Stop(Exception):
        pass

    def stop(workers: Workers) -> None:
        def report(entry: Epoch) -> None:
            if entry["epoch"] == 2:
                raise Stop

        with pytest.raises(Stop if workers.rank == 0 else LostWorker):
            run(workers, options, checkpoint=tmp_path / str(workers.rank), report=report)

    whole = together(3, lambda workers: run(workers, options))
    together(3, stop, patience_s=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0"]  # the first alone keeps a checkpoint
    seen: list[float] = []
    resumed = together(
        3,
        lambda workers: run(
            workers,
            options,
            checkpoint=tmp_path / str(workers.rank),
            report=lambda entry: seen.append(entry["epoch"]),
        ),
    )
    assert seen == [3, 4]  # by the first alone, too
    assert all(history == whole[0][1] and equal(module, whole[0][0]) for module, history in resumed)


def test_other_number_of_workers_does_not_resume(tmp_path: Path) -> None:
    alone, _ = run(None, checkpoint=tmp_path / "run")
    module, history = together(2, lambda workers: run(workers, checkpoint=tmp_path / "run"))[0]
    assert len(history) == 2 and not equal(alone, module) and difference(alone, module) < 1e-5


def test_every_worker_starts_from_the_weights_of_the_first() -> None:
    other = build_model(ResNet(family="resnet", depth=8, width=4), PICTURES, 3, seed=2)

    def work(workers: Workers) -> nn.Module:
        module = copy.deepcopy(other if workers.rank else NETWORK)
        train(module, blobs(PICTURES), OPTIONS, seed=3, workers=workers, report=quiet)
        return module

    alone, _ = run(None)
    assert all(difference(alone, module) < 1e-5 for module in together(2, work))


def test_shares_are_disjoint_and_keep_the_order_of_the_rows() -> None:
    rows = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    shares = together(3, lambda workers: workers.share(rows))
    assert torch.equal(torch.cat(shares), rows) and [len(share) for share in shares] == [8, 8, 7]


def test_gradients_of_parameters_that_some_workers_do_not_use_are_added_up() -> None:
    def work(workers: Workers) -> list[Tensor | None]:
        parameters = [nn.Parameter(torch.zeros(2, 3)) for _ in range(4)]
        parameters[3].requires_grad_(False)
        parameters[0].grad = torch.full((2, 3), 1.0 + workers.rank)
        if workers.rank == 1:
            parameters[1].grad = torch.full((2, 3), 5.0)
        workers.sum_gradients_(parameters)
        return [parameter.grad for parameter in parameters]

    for both, one, none, frozen in together(2, work):
        assert both is not None and one is not None and none is None and frozen is None
        assert bool((both == 3).all()) and bool((one == 5).all())


def test_divergence_stops_all_workers_with_the_same_line() -> None:
    options = Training(epochs=20, precision="fp32", batch_size=4, learning_rate=10.0, momentum=0.99)

    module = network()

    def work(workers: Workers) -> str:
        with pytest.raises(InputError) as caught:
            train(copy.deepcopy(module), blobs(), options, 0, workers=workers, report=quiet)
        return str(caught.value)

    first, second = together(2, work)
    assert first == second and first.startswith("training diverged: the loss is no longer finite in epoch ")


def test_batches_too_small_for_the_workers_are_refused() -> None:
    data = blobs()
    few = TrainingData(data.inputs[:5], data.labels[:5], data.validation_inputs, data.validation_labels)
    for rows, size, message in (
        (data, 5, "training with 3 workers needs a batch_size of 6 at least, got 5"),
        (few, 16, "training with 3 workers needs 6 training rows and 1 validation row at least, got 5 and 30"),
    ):
        with pytest.raises(InputError, match=message):
            together(3, lambda w, r=rows, s=size: train(network(), r, Training(batch_size=s), 0, workers=w))  # type: ignore[misc]


def test_a_last_batch_too_small_for_the_workers_is_left_out() -> None:
    module, history = together(2, lambda workers: run(workers, OPTIONS.model_copy(update={"batch_size": 57})))[0]
    assert len(history) == 2 and not module.training  # 57 rows, then 3


def test_a_worker_that_is_gone_is_noticed_by_the_others() -> None:
    def work(workers: Workers) -> None:
        if workers.rank == 0:
            begin = time.monotonic()
            with pytest.raises(LostWorker):
                workers.sum_(torch.ones(1))
            assert time.monotonic() - begin < 30

    together(2, work, patience_s=3)


def test_different_results_are_noticed_by_all() -> None:
    def work(workers: Workers) -> None:
        with pytest.raises(RuntimeError, match="hold different weights; are their machines of one kind"):
            workers.check_equal("ab" if workers.rank else "cd")

    together(2, work)
    together(2, lambda workers: workers.check_equal("ab"))


def test_what_the_first_says_reaches_all() -> None:
    content = bytes(range(256)) * 5
    said = together(3, lambda w: (w.first_bytes(content if w.rank == 0 else b""), w.first_numbers([w.rank + 0.5, 7])))
    assert said == [(content, [0.5, 7.0])] * 3
    assert together(2, lambda workers: workers.first_bytes(b"")) == [b"", b""]
