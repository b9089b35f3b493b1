"""What a training run shows: a line an epoch, and a moving bar where someone is watching a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mlites.training.resume import Epoch


def epoch_line(entry: Epoch, epochs: int) -> str:
    """One epoch in words.

    >>> entry = {"epoch": 3, "train_loss": 0.3119, "validation_accuracy": 0.972, "learning_rate": 0.034}
    >>> epoch_line(entry, 20)
    'epoch 3/20  loss 0.312  validation 97.2%  lr 0.034'
    """
    return (
        f"epoch {entry['epoch']:.0f}/{epochs}  loss {entry['train_loss']:.3f}  "
        f"validation {100 * entry['validation_accuracy']:.1f}%  lr {entry['learning_rate']:.2g}"
    )


@contextmanager
def batch_bar(batches: int) -> Iterator[Callable[[], None]]:
    """Yield what to call after each batch; it moves a bar on a terminal and does nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda: None
        return
    columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(), transient=True) as bar:
        line = bar.add_task("training", total=batches)
        yield lambda: bar.advance(line)
