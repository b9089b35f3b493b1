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


Interval = tuple[float, float]


class LatencyInterval(Part):
    """95% intervals of the percentiles."""

    p50: Interval
    p95: Interval
    p99: Interval


class Throughput(Part):
    """Rows answered in a second."""

    batch: int = Field(description="Rows in one call.")
    streams: int = Field(description="Callers at once.")
    rows_per_second: float
    interval: Interval | None = None


class ColdStart(Part):
    """Milliseconds of a fresh process."""

    load: float
    first: float = Field(description="The first inference after loading.")


class Energy(Part):
    """Of one inference of a batch."""

    millijoules: float
    interval: Interval | None = None
    kind: Literal["measured", "estimated"]
    source: str = Field("", description="The meter, or the model of the estimate.")


class Roofline(Part):
    """How close the model is to what the machine could do."""

    macs: int | None = Field(None, description="Of one inference of the batch.")
    int8_macs: int | None = Field(None, description="Those of them that run in integers.")
    bytes: int | None = Field(None, description="Moved between memory and processor for one batch, at the least.")
    intensity: float = Field(description="Multiply-accumulates for each byte moved.")
    compute_ms: float | None = Field(None, description="Of the arithmetic at peak speed.")
    memory_ms: float | None = Field(None, description="Of the bytes at peak bandwidth.")
    overhead_ms: float | None = Field(None, description="Of calling the operators, whatever they do.")
    limit_ms: float = Field(description="Of a batch, if the machine reached its peak: the greater of the two.")
    fraction_of_limit: float
    bound: str = Field(description="What limits it: compute, memory, or overhead.")
    not_counted: list[str] = Field([], description="Operators whose products are not among the macs.")


class Operator(Part):
    """One of the operators that take the most time."""

    name: str
    op_type: str
    share: float = Field(description="Fraction of the time of all operators.")
    us: float = Field(description="Microseconds of an inference.")
    hint: str | None = None


class Peaks(Part):
    """What the machine reached with ONNX Runtime's own kernels."""

    fp32_gmacs_per_second: float
    int8_gmacs_per_second: float
    stream_gbytes_per_second: float = Field(description="From memory.")
    cached_gbytes_per_second: list[tuple[int, float]] = Field(
        [], description="Working set in bytes, and the bandwidth of the cache that holds it."
    )
    call_us: float | None = Field(None, description="Fixed cost of one call.")
    node_us: float | None = Field(None, description="Fixed cost of each operator.")


class Load(Part):
    """Who else took the processor's time while it was measured, as fractions."""

    others_share: float | None = None
    steal_share: float | None = None


class Environment(Part):
    """The machine that measured the candidates."""

    cpu: str
    isa: list[str]
    cores: int | None = None
    threads: int
    batch: int | None = None
    packages: dict[str, str]
    profile: str | None = Field(None, description="Name of the hardware profile.")
    provider: str | None = Field(None, description="ONNX Runtime's execution provider.")
    warnings: list[str] = Field([], description="What the machine lacks of the profile, and others' load.")
    load: Load | None = None
    peaks: Peaks | None = None


class DataSummary(Part):
    """The dataset by its digest."""

    digest: str | None
    rows: dict[str, int]
    classes: list[str]


class Figures(Part):
    """What is found of baseline and candidates alike, beyond accuracy, latency and size; empty where unknown."""

    latency_interval_ms: LatencyInterval | None = None
    throughput: list[Throughput] = []
    cold_start_ms: ColdStart | None = None
    energy: Energy | None = None
    roofline: Roofline | None = None
    operators: list[Operator] = Field([], description="The costliest, the first most.")
    per_class: list[float | None] = Field([], description="Recall of each class, null for a class without test rows.")
    ece: float | None = Field(None, description="Expected calibration error, 15 bins, 0 to 1.")


class ClassDrop(Part):
    """What a candidate loses in one class against the baseline, on the same rows."""

    rows: int
    lost: int = Field(description="Rows that the baseline alone has right.")
    won: int = Field(description="Rows that the candidate alone has right.")
    points: float
    interval: Interval
    p_value: float = Field(description="McNemar's exact test, two-sided.")


class BudgetLine(Part):
    """One line of the budget and what was found."""

    line: str
    value: float | None = None
    limit: float
    unit: str
    bound: Literal["at most", "at least"] = "at most"
    margin: float | None = Field(None, description="How far on the right side of the limit; negative: the wrong side.")
    interval: Interval | None = Field(None, description="95%; null where the value is exact.")
    verdict: Literal["pass", "fail", "undecided"]
    note: str = ""


class Failure(Part):
    """Why a candidate could not be judged."""

    step: str
    error: str


class Nearest(Part):
    """What the best candidate needs to meet a line that it misses."""

    line: str
    sentence: str


class FrontSummary(Part):
    """The Pareto front of the run."""

    axes: list[str]
    reference: dict[str, float]
    reference_name: str
    hypervolume: float = Field(description="Share of the box between the reference and the best there could be.")


class Baseline(Figures):
    """The FP32 ONNX Runtime teacher that every ratio refers to."""

    name: str
    accuracy: float = Field(description="Fraction of the test rows, 0 to 1.")
    latency_ms: Latency
    size_bytes: int
    peak_memory_bytes: int | None
    download_bytes: int | None = Field(None, description="Of model.onnx, entropy-coded for an edge download.")
    parameters: int | None = None
    macs: int | None = Field(None, description="Multiply-accumulates of one row, counted in model.onnx.")


class CandidateSummary(Figures):
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
    speedup_interval: Interval | None = Field(
        None, description="95% bootstrap interval of the speedup, widened by 0.5%."
    )
    speedup_over_source: float | None = Field(
        None, description="Against its own FP32 form, in the same rounds; null where nothing was quantized."
    )
    speedup_over_source_interval: Interval | None = None
    speedup_narrow: bool | None = Field(None, description="Whether the interval is as narrow as the profile asks.")
    measured_seconds: float | None = None
    size_ratio: float | None = Field(None, description="Baseline size / candidate size.")
    accuracy_drop_interval: Interval | None = Field(None, description="95%, paired: were the test rows a sample.")
    class_drops: list[ClassDrop | None] = []
    lines: list[BudgetLine] = Field([], description="Every line of the budget.")
    failed: Failure | None = None
    marks: list[str] = Field([], description="What to know of the machine that measured it.")
    on_front: bool | None = None
    within_budget: bool | None = None
    reasons: list[str] = []
    warnings: list[str] = Field([], description="What did not do what it is for, such as a slower quantized form.")


class Golden(Part):
    """What the served version answered for the golden samples, compared with ONNX Runtime."""

    samples: int
    max_abs_difference: float
    agreement: float | None = None


class SettingSummary(Part):
    """Serving settings as a Triton without callers answered with them."""

    max_batch_size: int
    max_queue_delay_us: int
    instances: int
    threads: int = Field(description="Of one instance's ONNX Runtime session.")
    callers: int | None = Field(None, description="At once, of the load that counts; null for independent callers.")
    rows_per_second: float | None = None
    p50_ms: float | None = Field(None, description="From a request to its answer.")
    p95_ms: float | None = None
    p99_ms: float | None = None
    mean_batch: float | None = Field(None, description="Rows that Triton ran together on average.")
    meets: bool = Field(False, description="Whether it answers within the limit, and all of the requests.")
    error: str | None = Field(None, description="Why Triton did not load it.")


class Requests(Part):
    """How requests came."""

    pattern: Literal["closed", "poisson"]
    rate_per_second: float | None = None


class SweepSummary(Part):
    """The serving settings that were tried, the one in service first."""

    arrival: Requests
    rows_per_request: int
    p95_ms: float | None = Field(None, description="Limit of the 95th percentile.")
    settings: list[SettingSummary]
    reason: str = Field(description="Why the first is the best.")


class DeploymentSummary(Part):
    """What Triton serves now, or, where the gate or the smoke test said no, why nothing changed."""

    model: str
    version: int | None = None
    repository: str | None = None
    sha256: str | None = Field(None, description="Of the served model.onnx.")
    triton_url: str | None = None
    grpc_url: str | None = None
    previous_version: int | None = None
    release: str | None = Field(None, description="Digest of the release in service.")
    previous_release: str | None = Field(None, description="What `mlites rollback` brings back.")
    golden: Golden | None = None
    reasons: list[str] = []
    sweep: SweepSummary | None = None


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
    nearest: list[Nearest] = Field([], description="What the best candidate needs, where none meets the budget.")
    front: FrontSummary | None = None
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
    candidates = [
        {**one, "name": name, "marks": (one.get("machine") or {}).get("warnings", [])}
        for name, one in {**planned, **measured}.items()
    ]
    judged = [verdict for verdict in verdicts if not verdict.get("failed")]
    return Summary.model_validate(
        {
            "run": run,
            "recipe": recipe.name,
            "status": "failed" if error is not None or deployment is None else deployment["status"],
            "error": None if error is None else " ".join(error.split()),
            "failed_step": failed_step,
            "seed": recipe.seed,
            "environment": judged[0]["machine"] if judged else None,
            "data": data,
            "budget": recipe.budget,
            "baseline": selection.get("baseline") or (judged[0]["baseline"] if judged else None),
            "candidates": candidates,
            "selected": selection.get("selected"),
            "reason": selection.get("reason"),
            "nearest": selection.get("nearest", []),
            "front": selection.get("front"),
            "deployment": deployment,
        }
    )


def summary_schema() -> dict[str, Any]:
    """JSON Schema of summary.json, as checked in beside this file."""
    schema = Summary.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(summary_schema(), indent=2) + "\n")
