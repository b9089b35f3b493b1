"""Which serving settings are tried on a Triton before a model is deployed."""

from typing import Annotated

from pydantic import Field, field_validator

from mlites.recipe.options import Options

Callers = Annotated[int, Field(ge=1, le=1024)]


class Sweep(Options):
    """Serving settings to try, one kind after the other, the others kept at the best so far.

    The search begins at the section's own max_batch_size, max_queue_delay_us and instances, and at the profile's
    threads. Requests come as the profile's ``arrival`` says, each with ``hardware.batch`` rows.
    """

    max_batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((8, 32), max_length=8)
    max_queue_delays_us: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (0, 100, 1000), max_length=8, description="How long dynamic batching waits, microseconds."
    )
    instances: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2), max_length=8)
    threads: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        (), max_length=8, description="Threads of one instance's ONNX Runtime session."
    )
    callers: tuple[Callers, ...] = Field(
        (1, 4, 16),
        min_length=1,
        max_length=8,
        description="Callers at once, each of which asks again when it is answered; for arrival poisson, its rate "
        "takes their place.",
    )
    p95_ms: float | None = Field(
        None,
        gt=0,
        description="Largest 95th percentile of the time from a request to its answer, milliseconds; default: "
        "promotion.p95_ms, or else the budget's p95_ms, which judges the model alone.",
    )
    seconds: float = Field(0.4, gt=0, le=60, description="Time of one measurement.")

    @field_validator("max_batch_sizes", "max_queue_delays_us", "instances", "threads", "callers")
    @classmethod
    def _differ(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"a number stands here twice: {', '.join(map(str, values))}")
        return values
