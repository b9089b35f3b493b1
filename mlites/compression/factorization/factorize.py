"""Factorize the layers of a network where that saves work, then fine-tune it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlites.compression.cost import count_cost
from mlites.compression.factorization.candidates import Candidate, find_candidates
from mlites.compression.factorization.cp import cp_by_energy, cp_choices, factorize_cp
from mlites.compression.factorization.depthwise_separable import separable_choice, separate
from mlites.compression.factorization.ranks import Choice, by_budget, by_energy, that_save
from mlites.compression.factorization.svd import factorize_linear, factorize_pointwise, svd_choices
from mlites.compression.factorization.tucker import factorize_tucker, tucker_choices
from mlites.errors import InputError
from mlites.recipe import Factorize
from mlites.training.loop import TrainingData, evaluate, train
from mlites.training.resume import Epoch

DEFAULT_BUDGET = 0.5


def factorize_module(
    module: nn.Module,
    data: TrainingData,
    options: Factorize,
    seed: int,
    *,
    input_shape: Sequence[int],
    checkpoint: Path | None = None,
) -> tuple[nn.Module, list[Epoch], dict[str, Any]]:
    """Replace layers as by ``factorize_layers``, then train all weights.

    Args:
        module: left unchanged.
        data: to train and decide on.
        options: method, energy or budget, training.
        seed: of the CP fits and of training.
        input_shape: of one row.
        checkpoint: file that outlives a killed training.

    Returns:
        The network in evaluation mode on the CPU, one entry an epoch, and the facts of ``factorize_layers`` with
        validation_accuracy_before_tuning.

    Raises:
        InputError: nothing can be saved, or the training fails.
    """
    factorized, facts = factorize_layers(module, data.inputs[:1].reshape(1, *input_shape), options, seed)
    facts["validation_accuracy_before_tuning"] = evaluate(factorized, data.validation_inputs, data.validation_labels)[0]
    history = train(factorized, data, options.training, seed, checkpoint=checkpoint)
    return factorized, history, facts


def factorize_layers(
    module: nn.Module, example: Tensor, options: Factorize, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Replace layers by ``nn.Sequential`` of cheaper ones that compute nearly the same, without training.

    A layer stays whole where no rank saves multiply-accumulates and parameters, where it is too small, grouped, tied to
    another or not a plain one, and where the network does more with it than call it, which is tried.

    Args:
        module: left unchanged.
        example: one row (1, *input_shape).
        options: method, and energy or budget.
        seed: of the CP fits.

    Returns:
        The network in evaluation mode on the CPU, and facts: ranks by layer, kept_whole (reason by layer), macs_before,
        macs_after, parameters_before, parameters_after.

    Raises:
        InputError: no layer can be replaced, or the budget is out of reach.
    """
    whole_network = copy.deepcopy(module).cpu().eval()
    candidates, kept_whole = find_candidates(whole_network, example, options.method)
    for name, fault in _faults(whole_network, example, list(candidates)).items():
        del candidates[name]
        kept_whole[name] = f"the network does more with it than call it: {fault}"
    choices = {name: that_save(_choices(one, options.method), one.whole) for name, one in candidates.items()}
    for name in [name for name, found in choices.items() if not found]:
        del candidates[name], choices[name]
        kept_whole[name] = "no rank saves anything"
    if not candidates:
        raise _refused(options.method, kept_whole)
    before = count_cost(whole_network, example.shape[1:])
    if options.method == "depthwise-separable":
        chosen = {name: found[0] for name, found in choices.items()}
    elif options.energy is not None:
        chosen = _by_energy(candidates, choices, options.method, options.energy, seed, kept_whole)
    else:
        chosen = _by_budget(candidates, choices, options.budget or DEFAULT_BUDGET, before["macs"], kept_whole)
    if not chosen:
        raise _refused(options.method, kept_whole)
    factorized = whole_network
    for name, choice in chosen.items():
        _replace_(factorized, name, _build(candidates[name], options.method, choice.ranks, seed))
    after = count_cost(factorized, example.shape[1:])
    return factorized, {
        "ranks": {name: list(choice.ranks) for name, choice in chosen.items()},
        "kept_whole": dict(sorted(kept_whole.items())),
        "macs_before": before["macs"],
        "macs_after": after["macs"],
        "parameters_before": before["parameters"],
        "parameters_after": after["parameters"],
    }


def _choices(candidate: Candidate, method: str) -> list[Choice]:
    if candidate.pointwise:
        return svd_choices(candidate)
    if method == "depthwise-separable":
        return [separable_choice(candidate)]
    return cp_choices(candidate) if method == "cp" else tucker_choices(candidate)


def _build(candidate: Candidate, method: str, ranks: tuple[int, ...], seed: int) -> nn.Sequential:
    layer = candidate.layer
    if isinstance(layer, nn.Linear):
        return factorize_linear(layer, *ranks)
    if candidate.pointwise:
        return factorize_pointwise(layer, *ranks)
    if method == "depthwise-separable":
        return separate(layer)
    return factorize_cp(layer, ranks[0], seed) if method == "cp" else factorize_tucker(layer, *ranks)


def _by_energy(
    candidates: dict[str, Candidate],
    choices: dict[str, list[Choice]],
    method: str,
    energy: float,
    seed: int,
    kept_whole: dict[str, str],
) -> dict[str, Choice]:
    chosen = {}
    for name, found in choices.items():
        fitted = method == "cp" and not candidates[name].pointwise
        choice = cp_by_energy(candidates[name], found, energy, seed) if fitted else by_energy(found, energy)
        if choice is None:
            kept_whole[name] = f"no rank that saves anything keeps {100 * energy:g}% of its energy"
        else:
            chosen[name] = choice
    return chosen


def _by_budget(
    candidates: dict[str, Candidate],
    choices: dict[str, list[Choice]],
    budget: float,
    macs: int,
    kept_whole: dict[str, str],
) -> dict[str, Choice]:
    fixed = macs - sum(one.whole.macs for one in candidates.values())
    least = fixed + sum(min(one.macs for one in found) for found in choices.values())
    if least > budget * macs:
        whole = "; ".join(f"{name}: {reason}" for name, reason in list(kept_whole.items())[:3]) or "none stays whole"
        raise InputError(
            f"budget {budget:g} is out of reach: layers that stay whole and the lowest ranks of the others take "
            f"{least / macs:.3f} of the multiply-accumulates; raise budget ({whole})"
        )
    everything = {name: [*found, candidates[name].whole] for name, found in choices.items()}
    chosen = by_budget(everything, budget * macs - fixed)
    for name, choice in chosen.items():
        if not choice.ranks:
            kept_whole[name] = "at this budget it is worth more whole"
    return {name: choice for name, choice in chosen.items() if choice.ranks}


def _faults(module: nn.Module, example: Tensor, names: list[str]) -> dict[str, str]:
    """Layers that the network does more with than call, found by wrapping them, which changes nothing else."""
    with torch.no_grad():
        expected = module(example)

    def fault(wrapped: list[str]) -> str | None:
        trial = copy.deepcopy(module)
        for name in wrapped:
            _replace_(trial, name, nn.Sequential(trial.get_submodule(name)))
        try:
            with torch.no_grad():
                output = trial(example)
        except Exception as error:  # whatever a network of the user's raises
            return (str(error).splitlines() or [type(error).__name__])[0][:200]
        return None if torch.allclose(output, expected, equal_nan=True) else "its output changes"

    if fault(names) is None:
        return {}
    found = {name: reason for name in names if (reason := fault([name])) is not None}
    rest = [name for name in names if name not in found]
    together = fault(rest)
    return found if together is None else {**found, **dict.fromkeys(rest, together)}


def _replace_(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, part)


def _refused(method: str, reasons: dict[str, str]) -> InputError:
    if not reasons:
        return InputError(f"nothing to factorize by {method}: the network has no linear layer or convolution")
    shown = "; ".join(f"{name or 'network'}: {reason}" for name, reason in list(reasons.items())[:5])
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return InputError(f"nothing to factorize by {method}: {shown}{more}")
