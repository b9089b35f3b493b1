"""Learning-rate rewinding: the weights stay as trained, and the original schedule runs again from an earlier epoch.

Source: Renda, Frankle & Carbin (2020), "Comparing Rewinding and Fine-tuning in Neural Network Pruning".
"""

from pathlib import Path

from torch import Tensor, nn

from mlites.compression.pruning.rewinding import Origin
from mlites.training.loop import TrainingData, train
from mlites.training.resume import Epoch


def replay_schedule(
    module: nn.Module,
    data: TrainingData,
    origin: Origin,
    epoch: int,
    *,
    masks: dict[str, Tensor] | None = None,
    checkpoint: Path | None = None,
) -> list[Epoch]:
    """Train a pruned network in place as the original was trained from ``epoch`` to the end of its schedule.

    Args:
        module: with whichever weights are to be trained on.
        data: that of the original training.
        origin: whose options, order of rows and learning rates are used again.
        epoch: of the original schedule, from 0.
        masks: parameter name -> bool tensor; where False, the weight is held at zero.
        checkpoint: file that outlives a killed run.

    Returns:
        One entry an epoch, numbered as in the original schedule.
    """
    return train(module, data, origin.options, origin.seed, masks=masks, first_epoch=epoch, checkpoint=checkpoint)
