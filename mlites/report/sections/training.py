"""Every training of the run."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mlites.report.details import Provenance, Verdict
from mlites.report.plots.curves import Curve, curves_plot


@dataclass(frozen=True)
class Training:
    """One training history and who uses its result."""

    title: str
    options: str
    users: list[str]
    best: float | None
    epochs: int
    plot: Markup


def list_trainings(verdicts: Iterable[Verdict]) -> list[Training]:
    """Every training once, though candidates that share passes share it."""
    found: dict[str, tuple[Provenance, list[str]]] = {}
    for verdict in verdicts:
        chain = ""
        for step in verdict.provenance:
            chain += json.dumps(step.model_dump(), sort_keys=True)
            if step.history:
                found.setdefault(chain, (step, []))[1].append(verdict.candidate)
    return [_trained(step, users) for step, users in found.values()]


def _trained(step: Provenance, users: list[str]) -> Training:
    history = step.history
    scores = [one.validation_accuracy for one in history if one.validation_accuracy is not None]
    title = "Teacher" if step.step == "train" else step.step.capitalize()
    plot = curves_plot(
        f"{title}: validation accuracy and losses over {len(history)} epochs",
        [one.epoch for one in history],
        Curve("validation accuracy", [one.validation_accuracy for one in history], "first"),
        [
            Curve("training loss", [one.train_loss for one in history], "second"),
            Curve("validation loss", [one.validation_loss for one in history], "first"),
        ],
    )
    return Training(title, _options(step), users, max(scores, default=None), len(history), plot)


def _options(step: Provenance) -> str:
    """The few options that tell one training of a kind from another."""
    words = []
    for key in ("method", "amount", "student", "architecture"):
        value = step.options.get(key)
        if isinstance(value, dict):
            value = _network(value)
        if value is not None:
            words.append(f"{value:.0%}" if key == "amount" and isinstance(value, float) else str(value))
    return " · ".join(words)


def _network(architecture: dict[str, Any]) -> str:
    family, sizes = architecture.get("family", "network"), [v for k, v in architecture.items() if k != "family"]
    flat = [str(one) for value in sizes for one in (value if isinstance(value, list) else [value])]
    return f"{family} {'x'.join(flat)}".strip()
