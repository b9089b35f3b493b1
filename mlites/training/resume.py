"""Where a training run stands after an epoch: one safetensors file that appears whole, and no pickle."""

import json
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mlites.checkpoints import stored_checkpoints
from mlites.files import write_atomically
from mlites.training.workers import Workers

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
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(whole, metadata={"progress": json.dumps(document)})
    write_atomically(path, content)
    if stored := stored_checkpoints():
        stored.keep(identity, content)


def load_progress_(
    path: Path,
    identity: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    workers: Workers | None = None,
) -> Progress | None:
    """Put a run back where the file, or the one in the store, says it stood.

    Args:
        path: what `save_progress` wrote.
        identity: of this run.
        module: gets the weights.
        optimizer: gets its state.
        workers: all go on from what the first one finds.

    Returns:
        None, with module and optimizer untouched, where the file is missing, damaged, or another run's.
    """
    content = b"" if workers and workers.rank else _find(path, identity)
    if workers:
        content = workers.first_bytes(content)
    if not content:
        return None
    document, tensors = _read(content), load(content)
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


def _find(path: Path, identity: str) -> bytes:
    """The bytes of this run's checkpoint, empty where there is none."""
    stored = stored_checkpoints()
    with suppress(OSError):
        content = path.read_bytes()
        if _belongs(content, identity):
            return content
    if stored and (kept := stored.find(identity)) and _belongs(kept, identity):
        return kept
    return b""


def _belongs(content: bytes, identity: str) -> bool:
    try:
        load(content)
        return bool(_read(content)["identity"] == identity)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError):
        return False


def _read(content: bytes) -> dict[str, Any]:
    """What `save_progress` wrote beside the tensors: safetensors begin with the length of a JSON header."""
    (length,) = struct.unpack("<Q", content[:8])
    document: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["progress"])
    return document
