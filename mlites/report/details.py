"""What the page shows beyond summary.json: the parts of the run's documents that it reads."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from mlites.report.calls import Signature


class Shown(BaseModel):
    """Base of what the page shows of a document; fields it does not show are left unread."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Epoch(Shown):
    """One line of a training history; null where nothing finite was recorded."""

    epoch: int
    train_loss: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None


class Provenance(Shown):
    """One step that made a model."""

    step: str
    options: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    seed: int | None = None
    history: list[Epoch] = []


class Bin(Shown):
    """Test rows answered with about the same confidence."""

    rows: int
    confidence: float
    accuracy: float


class Answered(Shown):
    """The baseline's answers to the test rows; rows of the confusion matrix are the true classes."""

    confusion: list[list[int]] = []
    calibration: list[Bin] = []


class Verdict(Shown):
    """What the page shows of a verdict document."""

    candidate: str
    model: str | None = None
    passes: list[str] = []
    provenance: list[Provenance] = []
    confusion: list[list[int]] = []
    agreement: float | None = None
    rounds: int | None = None
    calibration: list[Bin] = []
    baseline: Answered | None = None


class Check(Shown):
    """One expectation about the data."""

    name: str
    column: str | None = None
    critical: bool = False
    success: bool
    observed: Any = None
    rule: str = ""


class DataDocument(Shown):
    """What the page shows of the data document."""

    source: str | None = None
    class_counts: dict[str, dict[str, int]] = {}
    duplicates_removed_across_splits: int | None = None
    checks: list[Check] = []


class Details(Shown):
    """What the page shows beyond summary.json. Documents may be handed in whole."""

    recipe_yaml: str = ""
    code_digest: str | None = None
    git_commit: str | None = None
    data: DataDocument | None = None
    signature: Signature | None = None
    verdicts: list[Verdict] = []
