"""What a candidate must reach to be deployed."""

from typing import Literal

from pydantic import Field

from mlites.recipe.options import Options


class Budget(Options):
    """What a candidate must reach to be deployed; a line left out is not judged."""

    accuracy_drop_points: float = Field(1.0, ge=0, le=100, description="Largest loss against the teacher, in points.")
    class_drop_points: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Largest loss of any one class's recall against the teacher, in points, where it is beyond chance.",
    )
    ece_rise_points: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Largest rise of the expected calibration error (15 bins) against the teacher, in points.",
    )
    p95_ms: float | None = Field(None, gt=0, description="Largest 95th percentile of latency, milliseconds a batch.")
    speedup: float | None = Field(None, gt=0, description="Least ratio of the teacher's median latency to its own.")
    rows_per_second: float | None = Field(
        None, gt=0, description="Least throughput, at the best of the profile's batch sizes and streams."
    )
    cold_start_ms: float | None = Field(
        None, gt=0, description="Largest time to load the model and answer once in a fresh process, milliseconds."
    )
    size_kib: float | None = Field(None, gt=0, description="Largest model.onnx, KiB.")
    download_kib: float | None = Field(None, gt=0, description="Largest model.onnx packed for download, KiB.")
    peak_memory_mib: float | None = Field(
        None, gt=0, description="Largest resident memory of a process that infers, MiB."
    )
    energy_mj: float | None = Field(None, gt=0, description="Largest energy of one inference of a batch, millijoules.")
    undecided: Literal["reject", "deploy"] = Field(
        "reject",
        description="What the gate does where a line's interval still holds its limit after the longest measurement.",
    )
