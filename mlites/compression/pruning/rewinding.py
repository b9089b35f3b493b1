"""Weight rewinding: what is left after pruning returns to its values early in the original training.

Source: Frankle & Carbin (2019), "The Lottery Ticket Hypothesis"; late rewinding, to an epoch after the first, from
Frankle, Dziugaite, Roy & Carbin (2019), "Stabilizing the Lottery Ticket Hypothesis".
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mlites.errors import InputError
from mlites.recipe import Training
from mlites.training.loop import TrainingData, train


@dataclass(frozen=True)
class Origin:
    """The training that a network comes from.

    Attributes:
        build: gives the network untrained, with its initial weights.
        options: of the original training.
        seed: of the original training.
    """

    build: Callable[[], nn.Module]
    options: Training
    seed: int


def network_at_epoch(origin: Origin, data: TrainingData, epoch: int, checkpoint: Path | None = None) -> nn.Module:
    """The original network after ``epoch`` epochs of its training, which are trained again: the same bits.

    Args:
        origin: the training to repeat; stopping early plays no part in its first epochs.
        data: that of the original training.
        epoch: 0 for the initial weights.
        checkpoint: file that outlives a killed run.
    """
    module = origin.build()
    if epoch:
        options = origin.options.model_copy(update={"early_stop": None})
        train(module, data, options, origin.seed, end_epoch=epoch, checkpoint=checkpoint)
    return module.eval()


def rewind_weights_(module: nn.Module, earlier: nn.Module) -> None:
    """Give a network all weights and statistics of an earlier state of itself.

    Raises:
        InputError: a layer has changed since.
    """
    state = earlier.state_dict()
    name = _first_difference(module.state_dict(), state)
    if name is not None:
        raise InputError(
            f"weight-rewinding: {name} is not what the original training had; an earlier pass changed the network, "
            f"use retrain: learning-rate-rewinding"
        )
    module.load_state_dict(state)


def _first_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (one, other)]
    return min((n for n in {*one, *other} if shapes[0].get(n) != shapes[1].get(n)), default=None)
