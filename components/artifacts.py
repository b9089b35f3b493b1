"""What KFP shows of a model: metrics and metadata of its artifact, or that its step failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlites.failure import read_failure
from mlites.files import write_atomically
from mlites.task import task

if TYPE_CHECKING:
    from mlites.models.card import ModelCard


@contextmanager
def candidate_step(model: Any, metrics: Any) -> Iterator[Path | None]:
    """Run the body of a step that makes a model; where a candidate fails, later steps and KFP see that in its artifact.

    Args:
        model: The step's ``dsl.Model`` artifact.
        metrics: Its ``dsl.Metrics`` artifact.

    Yields:
        The path of the step's checkpoint, as `task` does.
    """
    with task(Path(model.path)) as checkpoint:
        yield checkpoint
    if failure := read_failure(Path(model.path)):
        model.metadata["failed"] = str(failure)
        write_atomically(Path(metrics.path), "{}")


def describe(card: "ModelCard", model: Any, metrics: Any) -> None:
    """Fill in the artifacts of a step that made a model.

    Args:
        card: The model's.
        model: Its ``dsl.Model`` artifact, which gets the digest.
        metrics: The step's ``dsl.Metrics`` artifact, which gets the step's figures.
    """
    model.metadata["digest"] = card.digest
    for name, value in card.provenance[-1]["metrics"].items():
        if isinstance(value, int | float):
            metrics.log_metric(name, float(value))
    write_atomically(Path(metrics.path), "{}")  # the local cache wants a file behind every artifact


def show_confusion(selection: dict[str, Any], metrics: Any) -> None:
    """Fill in the confusion matrix of the selected candidate, with the names of the classes.

    Args:
        selection: The selection document.
        metrics: A ``dsl.ClassificationMetrics`` artifact; its rows are the true classes.
    """
    chosen = next(one for one in selection["candidates"] if one["candidate"] == selection["selected"])
    metrics.log_confusion_matrix(chosen["classes"], chosen["confusion"])
    write_atomically(Path(metrics.path), "{}")  # the local cache wants a file behind every artifact
