"""What KFP shows of a model: metrics and metadata of its artifact."""

from pathlib import Path
from typing import Any

from mlites.files import write_atomically
from mlites.models.card import ModelCard


def describe(card: ModelCard, model: Any, metrics: Any) -> None:
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
