"""Where a training run stands after an epoch: one safetensors file that appears whole, and no pickle."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mlites.files import write_atomically

Epoch = dict[str, float]


@dataclass
class Progress:
    """What the next epoch depends on, besides weights and optimizer.

    Attributes:
        history: one entry for each epoch done.
        best: state of the epoch with the least validation loss; kept only where training stops early.
        best_loss: that loss.
        stale: epochs since then.
    """

    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float | None = None
    stale: int = 0


def save_progress(
    path: Path, identity: str, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write all that a run needs to go on as if it had never stopped.

    Args:
        path: file to write or replace.
        identity: digest of what decides the run's result; only a run with the same one goes on from here.
        module: with the weights after the last epoch in ``progress.history``.
        optimizer: its state is kept, its settings are the options'.
        progress: the rest.
    """
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    document = {
        "identity": identity,
        "history": progress.history,
        "best_loss": progress.best_loss,
        "stale": progress.stale,
    }
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(content, metadata={"progress": json.dumps(document)}))


def load_progress_(path: Path, identity: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Put a run back where the file says it stood.

    Returns:
        None, with module and optimizer untouched, where the file is missing, damaged, or another run's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})["progress"])
            if document["identity"] != identity:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 the file is no mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    module.load_state_dict(parts["model"], strict=True)
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return Progress(document["history"], parts["best"], document["best_loss"], document["stale"])
