"""summary.json: what a run did, measured and decided, for machines to read."""

import json
import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlites.recipe import Budget, Recipe


class Part(BaseModel):
    """Base of every part of a summary. Fields that a newer mlites may add are left unread, not refused."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Latency(Part):
    """Milliseconds of one inference of a batch."""

    p50: float
    p95: float
    p99: float


class Environment(Part):
    """The machine that measured the candidates."""

    cpu: str
    isa: list[str]
    cores: int | None = None
    threads: int
    batch: int | None = None
    packages: dict[str, str]


class DataSummary(Part):
    """The dataset by its digest."""

    digest: str | None
    rows: dict[str, int]
    classes: list[str]


class Baseline(Part):
    """The FP32 ONNX Runtime teacher that every ratio refers to."""

    name: str
    accuracy: float = Field(description="Fraction of the test rows, 0 to 1.")
    latency_ms: Latency
    size_bytes: int
    peak_memory_bytes: int | None
    download_bytes: int | None = Field(None, description="Of model.onnx, entropy-coded for an edge download.")
    parameters: int | None = None
    macs: int | None = Field(None, description="Multiply-accumulates of one row, counted in model.onnx.")


class CandidateSummary(Part):
    """One candidate against the baseline; null where a failed run never measured it."""

    name: str
    passes: list[str]
    model: str | None = Field(None, description="SHA-256 of the model folder.")
    accuracy: float | None = None
    accuracy_drop_points: float | None = Field(None, description="100 * (baseline - candidate); negative is a gain.")
    latency_ms: Latency | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    download_bytes: int | None = Field(None, description="Of model.onnx, entropy-coded for an edge download.")
    parameters: int | None = Field(None, description="Of the last PyTorch form in its chain.")
    macs: int | None = Field(None, description="Multiply-accumulates of one row, counted in model.onnx.")
    speedup: float | None = Field(None, description="Median over rounds of baseline latency / candidate latency.")
    speedup_interval: tuple[float, float] | None = Field(
        None, description="95% bootstrap interval of the speedup, widened by 0.5%."
    )
    speedup_over_source: float | None = Field(
        None, description="Against its own FP32 form, in the same rounds; null where nothing was quantized."
    )
    speedup_over_source_interval: tuple[float, float] | None = None
    size_ratio: float | None = Field(None, description="Baseline size / candidate size.")
    on_front: bool | None = None
    within_budget: bool | None = None
    reasons: list[str] = []
    warnings: list[str] = Field([], description="What did not do what it is for, such as a slower quantized form.")


class Golden(Part):
    """What the served version answered for the golden samples, compared with ONNX Runtime."""

    samples: int
    max_abs_difference: float
    agreement: float | None = None


class DeploymentSummary(Part):
    """What Triton serves now, or, where the gate or the smoke test said no, why nothing changed."""

    model: str
    version: int | None = None
    repository: str | None = None
    sha256: str | None = Field(None, description="Of the served model.onnx.")
    triton_url: str | None = None
    grpc_url: str | None = None
    previous_version: int | None = None
    golden: Golden | None = None
    reasons: list[str] = []


class Step(Part):
    """One task of the pipeline."""

    name: str
    seconds: float
    cached: bool


class Summary(Part):
    """One run of one recipe."""

    format: Literal["mlites-summary/1"] = "mlites-summary/1"
    run: str
    recipe: str
    status: Literal["deployed", "rejected", "failed"]
    error: str | None = Field(None, description="One line: what failed. Null unless the status is failed.")
    failed_step: str | None = None
    seed: int
    environment: Environment | None = None
    data: DataSummary | None = None
    budget: Budget
    baseline: Baseline | None = None
    candidates: list[CandidateSummary]
    selected: str | None = Field(None, description="Name of the best candidate, deployed or not.")
    reason: str | None = Field(None, description="Why it is the best and whether it meets the budget.")
    deployment: DeploymentSummary | None = None
    steps: list[Step] = []
    overhead_seconds: float | None = Field(None, description="Wall time less the steps' own.")

    @property
    def selected_candidate(self) -> CandidateSummary | None:
        """The candidate that `selected` names."""
        return next((one for one in self.candidates if one.name == self.selected), None)


def summarize(
    run: str,
    recipe: Recipe,
    selection: dict[str, Any] | None,
    deployment: dict[str, Any] | None,
    data: dict[str, Any] | None,
    verdicts: list[dict[str, Any]],
    error: str | None = None,
    failed_step: str | None = None,
) -> Summary:
    """Build the summary from the run's documents; the runner adds steps and overhead.

    A failed run hands in what it has: candidates without a verdict appear with nulls.

    Raises:
        ValueError: the deployment document is missing and no error says why.
    """
    if deployment is None and error is None:
        raise ValueError(f"run {run} has no deployment document: give the error that stopped it")
    selection = selection or {}
    measured = {one["candidate"]: one for one in [*verdicts, *selection.get("candidates", [])]}
    planned = {one.name: {"passes": [step.label for step in one.passes]} for one in recipe.candidates}
    candidates = [{**one, "name": name} for name, one in {**planned, **measured}.items()]
    return Summary.model_validate(
        {
            "run": run,
            "recipe": recipe.name,
            "status": "failed" if error is not None or deployment is None else deployment["status"],
            "error": None if error is None else " ".join(error.split()),
            "failed_step": failed_step,
            "seed": recipe.seed,
            "environment": verdicts[0]["machine"] if verdicts else None,
            "data": data,
            "budget": recipe.budget,
            "baseline": selection.get("baseline") or (verdicts[0]["baseline"] if verdicts else None),
            "candidates": candidates,
            "selected": selection.get("selected"),
            "reason": selection.get("reason"),
            "deployment": deployment,
        }
    )


def summary_schema() -> dict[str, Any]:
    """JSON Schema of summary.json, as checked in beside this file."""
    schema = Summary.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(summary_schema(), indent=2) + "\n")
