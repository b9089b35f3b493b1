"""How a cluster runs the pipeline's tasks: what each kind may take, how long, how often, and how many at once."""

from typing import Annotated

from pydantic import Field, model_validator

from mlites.recipe.options import Name, Options

Cores = Annotated[float, Field(gt=0, le=1024, description="Cores, requested and at most.")]
Memory = Annotated[int, Field(ge=256, le=1 << 24, description="Memory, requested and at most, MiB.")]
Gpus = Annotated[int, Field(ge=0, le=64, description="NVIDIA GPUs.")]
Minutes = Annotated[int, Field(ge=1, le=30 * 24 * 60, description="One try is ended after so long, minutes.")]
Retries = Annotated[int, Field(ge=0, le=10, description="Further tries after a failure.")]


class Step(Options):
    """What one task may take."""

    cpu: Cores = 1
    memory_mib: Memory = 2048
    gpu: Gpus = 0
    timeout_minutes: Minutes = 60
    retries: Retries = 2


class TrainStep(Step):
    """Tasks that train: the teacher, and the passes that train."""

    cpu: Cores = 2
    memory_mib: Memory = 4096
    timeout_minutes: Minutes = 720


class ConvertStep(Step):
    """Tasks that export or quantize."""

    memory_mib: Memory = 4096
    timeout_minutes: Minutes = 120


class MeasureStep(Step):
    """Tasks that validate a candidate by measuring it; the hardware profile's cores, memory and provider come first."""

    cpu: Cores = 2
    memory_mib: Memory = 4096
    timeout_minutes: Minutes = 120


class DecideStep(Step):
    """Tasks that read and write documents: checking inputs, selecting, the gate, the report, the notification."""

    cpu: Cores = 0.5
    memory_mib: Memory = 1024
    timeout_minutes: Minutes = 15
    retries: Retries = 3


class InCluster(Options):
    """How a cluster runs the pipeline; a run on this machine ignores it."""

    parallelism: int | None = Field(
        None, ge=1, le=256, description="Candidates' tasks that may run at once; default: as many as the cluster takes."
    )
    queue: Name | None = Field(
        None, description="Kueue LocalQueue that admits the tasks; needs Kueue with its integration of plain pods."
    )
    priority_class: Name | None = Field(
        None, description="Kueue WorkloadPriorityClass of the tasks: who goes first in the queue."
    )
    retry_seconds: int = Field(
        30, ge=1, le=3600, description="Wait before the first further try; doubled before each one after it."
    )
    run_timeout_hours: int = Field(
        72, ge=1, le=30 * 24, description="The whole run is ended after so long, waiting for nodes included."
    )
    prepare: Step = Field(Step(memory_mib=4096), description="Reading, checking and splitting the data.")
    train: TrainStep = TrainStep()
    convert: ConvertStep = ConvertStep()
    measure: MeasureStep = MeasureStep()
    decide: DecideStep = DecideStep()
    deploy: Step = Field(Step(), description="Putting the selected candidate into Triton.")

    @model_validator(mode="after")
    def _priority_needs_a_queue(self) -> "InCluster":
        if self.priority_class is not None and self.queue is None:
            raise ValueError("priority_class orders the tasks of a queue: name the Kueue LocalQueue under queue")
        return self
