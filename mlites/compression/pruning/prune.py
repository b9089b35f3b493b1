"""The prune pass on a network: what is removed, at which rate in each layer, when, and how the rest trains again.

Source: the techniques' own files, beside this one.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.pruning import schedules
from mlites.compression.pruning.layerwise import layerwise_masks
from mlites.compression.pruning.learning_rate_rewinding import replay_schedule
from mlites.compression.pruning.magnitude import (
    apply_masks_,
    magnitude_masks,
    prunable_weights,
    sparsity,
    zero_masks,
)
from mlites.compression.pruning.n_m import n_m_masks
from mlites.compression.pruning.reinitialize import reinitialize_
from mlites.compression.pruning.rewinding import Origin, network_at_epoch, rewind_weights_
from mlites.compression.pruning.sensitivity import Sensitivity, analyse
from mlites.compression.pruning.structured import check_narrower, narrow, narrowing_facts
from mlites.compression.pruning.taylor import taylor_scores
from mlites.errors import InputError
from mlites.files import digest_json
from mlites.recipe import Prune
from mlites.training.loop import TrainingData, evaluate, train
from mlites.training.resume import Epoch

Masks = dict[str, Tensor]
Stage = Callable[[float], float]  # final rate -> the rate at this stage
Select = Callable[[nn.Module, Stage], Masks]


def prune_module(
    module: nn.Module,
    data: TrainingData,
    options: Prune,
    seed: int,
    *,
    input_shape: Sequence[int],
    origin: Origin | None = None,
    keep_zeros: bool = False,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, list[Epoch], dict[str, Any]]:
    """Prune a network and train again what is left.

    Args:
        module: left unchanged.
        data: rows to train on; its validation rows decide about sensitivity.
        options: the pass.
        seed: of samples, fine-tuning's draws and new random weights.
        input_shape: of one row.
        origin: the training that the network comes from, which rewinding and re-initialization repeat.
        keep_zeros: hold zeros of an earlier pruning at zero.
        checkpoint: what outlives a killed run: a file where there is one training, else a folder.

    Returns:
        The pruned network in evaluation mode, one entry for each epoch of all trainings, and facts.

    Raises:
        InputError: the network cannot be pruned so, or the retraining needs an original training that is not there.
    """
    origin = _checked(options, origin)
    run = _Run(module, data, options, seed, tuple(input_shape), origin, keep_zeros, checkpoint)
    cost = count_cost(module, input_shape)
    if options.method == "structured":
        pruned, history, facts = run.channels()
    else:
        pruned, history, facts = run.weights()
        facts = {f"{key}_{when}": value for when in ("before", "after") for key, value in cost.items()} | facts
    return pruned.eval(), history, {**facts, **sparsity(pruned)}


@dataclass(frozen=True)
class _Run:
    """One pass on one network."""

    module: nn.Module
    data: TrainingData
    options: Prune
    seed: int
    input_shape: tuple[int, ...]
    origin: Origin | None
    keep_zeros: bool
    checkpoint: Path | None

    @property
    def rounds(self) -> int:
        return self.options.rounds if self.options.schedule == "iterative" else 1

    def weights(self) -> tuple[nn.Module, list[Epoch], dict[str, Any]]:
        """Prune single weights."""
        select, facts = self._selection()
        if self.options.schedule == "gradual":
            module, history, at_once = self._gradually(select)
            return module, history, {**facts, **_rates(module), "validation_accuracy_before_tuning": at_once}
        module, history, rounds = copy.deepcopy(self.module), [], []
        for number in range(1, self.rounds + 1):

            def stage(final: float, number: int = number) -> float:
                return schedules.geometric(number, self.rounds, final)

            masks = select(module, stage)
            apply_masks_(module, masks)
            before, removed = self._accuracy(module), sparsity(module)["sparsity"]
            history += self._retrain_(module, masks, number)
            rounds.append(self._round(removed, before, self._accuracy(module)))
        return module, self._numbered(history), {**facts, **_rates(module), **self._tuning(rounds)}

    def channels(self) -> tuple[nn.Module, list[Epoch], dict[str, Any]]:
        """Remove channels."""
        options, module = self.options, self.module
        full = narrow(module, self.input_shape, lambda _, channels: channels / 2, 1).before
        sensitivity = self._sensitivity(full, self._without_channels) if options.rates == "sensitivity" else None
        rates = sensitivity.rates if sensitivity else dict.fromkeys(full, options.amount)
        history, rounds = [], []
        for number in range(1, self.rounds + 1):

            def width(name: str, channels: int, number: int = number) -> float:
                gone = schedules.equal_steps(number, self.rounds, rates.get(name, 0.0))
                return full.get(name, channels) * (1 - gone)

            result = narrow(module, self.input_shape, width, options.round_to, self._scores(module))
            after = {name: result.after.get(name, channels) for name, channels in full.items()}
            overall = dataclasses.replace(result, before=full, after=after)
            if number == self.rounds:
                check_narrower(overall, options.amount, options.round_to)
            if result.before == result.after:
                continue  # too small a step for a multiple of round_to; the next one makes up for it
            module = result.module
            before = self._accuracy(module)
            history += self._retrain_(module, zero_masks(module) if self.keep_zeros else {}, number)
            removed = 1 - sum(after.values()) / sum(full.values())
            rounds.append(self._round(removed, before, self._accuracy(module)))
        facts = narrowing_facts(dataclasses.replace(overall, module=module), self.module, self.input_shape)
        found = {"sensitivity": sensitivity.to_json()} if sensitivity else {}
        return module, self._numbered(history), {**facts, **found, **self._tuning(rounds)}

    def _selection(self) -> tuple[Select, dict[str, Any]]:
        """What tells the weights that stay at a stage, and what was found on the way."""
        options, facts = self.options, dict[str, Any]()
        zeros = zero_masks(self.module) if self.keep_zeros else {}
        sizes = {name: weight.numel() for name, weight in prunable_weights(self.module).items()}
        if options.method == "n-m":
            _, facts["kept_whole"] = n_m_masks(self.module, options.n, options.m)
            facts["pattern"] = f"{options.n}:{options.m}"
        rates = dict.fromkeys(sizes, options.amount)
        if options.rates == "sensitivity":
            sensitivity = self._sensitivity(sizes, self._without_weights)
            rates, facts["sensitivity"] = sensitivity.rates, sensitivity.to_json()

        def select(module: nn.Module, stage: Stage) -> Masks:
            if options.method == "magnitude":
                masks = magnitude_masks(module, stage(options.amount))
            elif options.method == "layerwise":
                masks = layerwise_masks(module, {name: stage(rate) for name, rate in rates.items()})
            else:
                masks, _ = n_m_masks(module, options.n, options.m)
            for name, mask in zeros.items():
                masks[name] = masks[name] & mask.to(masks[name].device) if name in masks else mask
            return masks

        return select, facts

    def _gradually(self, select: Select) -> tuple[nn.Module, list[Epoch], float]:
        """Train while the masks tighten; also the accuracy of pruning as much at once."""
        at_once, module = copy.deepcopy(self.module), copy.deepcopy(self.module)
        apply_masks_(at_once, select(at_once, lambda final: final))

        def tighten(training: nn.Module, done: float) -> Masks:
            return select(training, lambda final: schedules.gradual(done, final))

        history = train(
            module,
            self.data,
            self.options.training,
            self.seed,
            mask_schedule=tighten,
            identity=digest_json([self.options.model_dump(mode="json"), self.keep_zeros]),
            checkpoint=self._place("gradual"),
        )
        apply_masks_(module, select(module, lambda final: final))  # a training of a few steps may end too early
        return module, history, self._accuracy(at_once)

    def _retrain_(self, module: nn.Module, masks: Masks, number: int) -> list[Epoch]:
        origin, place = self.origin, self._place(f"round-{number}")
        if origin is None:
            options, seed = self.options.training, self.seed + number - 1
            return train(module, self.data, options, seed, masks=masks, checkpoint=place)
        if self.options.retrain == "weight-rewinding":
            rewind_weights_(module, self._earlier)
        elif self.options.retrain == "reinitialize":
            reinitialize_(module, origin.build(), self.seed + number)
        apply_masks_(module, masks)
        return replay_schedule(module, self.data, origin, self.options.rewind_epoch, masks=masks, checkpoint=place)

    @cached_property
    def _earlier(self) -> nn.Module:
        assert self.origin is not None
        return network_at_epoch(self.origin, self.data, self.options.rewind_epoch, self._place("origin"))

    def _place(self, name: str) -> Path | None:
        """Where a training may stop and go on: the given file where it is the only one, else a file in the folder."""
        recomputes = self.options.retrain == "weight-rewinding" and self.options.rewind_epoch > 0
        if self.checkpoint is None or (self.rounds == 1 and not recomputes):
            return self.checkpoint
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        return self.checkpoint / name

    def _sensitivity(self, sizes: dict[str, int], prune_one: Callable[[str, float], nn.Module]) -> Sensitivity:
        return analyse(self.module, self.data, self.options.amount, sizes, prune_one, self.seed)

    def _without_weights(self, name: str, rate: float) -> nn.Module:
        trial = copy.deepcopy(self.module)
        apply_masks_(trial, layerwise_masks(trial, {name: rate}))
        return trial

    def _without_channels(self, name: str, rate: float) -> nn.Module:
        def width(group: str, channels: int) -> float:
            return channels * (1 - rate) if group == name else channels

        return narrow(self.module, self.input_shape, width, 1, self._own_scores).module

    def _scores(self, module: nn.Module) -> dict[str, Tensor] | None:
        if self.options.importance == "magnitude":
            return None
        if module is self.module:
            return self._own_scores
        return self._taylor(module)

    @cached_property
    def _own_scores(self) -> dict[str, Tensor] | None:
        return None if self.options.importance == "magnitude" else self._taylor(self.module)

    def _taylor(self, module: nn.Module) -> dict[str, Tensor]:
        batch_size = self.options.training.batch_size
        return taylor_scores(module, self.data.inputs, self.data.labels, batch_size, self.seed)

    def _accuracy(self, module: nn.Module) -> float:
        return evaluate(module, self.data.validation_inputs, self.data.validation_labels)[0]

    def _numbered(self, history: list[Epoch]) -> list[Epoch]:
        """Epochs of several rounds counted on; those of one keep their place in the schedule."""
        if self.rounds == 1:
            return history
        return [{**entry, "epoch": number} for number, entry in enumerate(history, 1)]

    def _round(self, removed: float, before: float, after: float) -> dict[str, float]:
        return {
            "removed": round(removed, 4),
            "validation_accuracy_before_tuning": before,
            "validation_accuracy": after,
        }

    def _tuning(self, rounds: list[dict[str, float]]) -> dict[str, Any]:
        before = {"validation_accuracy_before_tuning": rounds[-1]["validation_accuracy_before_tuning"]}
        return {**before, "rounds": rounds} if self.rounds > 1 else dict(before)


def _rates(module: nn.Module) -> dict[str, dict[str, float]]:
    weights = prunable_weights(module)
    return {"rates": {name: round(float((weight == 0).float().mean()), 4) for name, weight in weights.items()}}


def _checked(options: Prune, origin: Origin | None) -> Origin | None:
    """The original training where the retraining repeats it."""
    if options.retrain == "fine-tune":
        return None
    if origin is None:
        raise InputError(
            f"retrain: {options.retrain} repeats the original training, but this network was not trained here from new "
            f"weights; use retrain: fine-tune"
        )
    if options.rewind_epoch >= origin.options.epochs:
        raise InputError(
            f"rewind_epoch must be below the {origin.options.epochs} epochs of the original training, "
            f"got {options.rewind_epoch}"
        )
    return origin
