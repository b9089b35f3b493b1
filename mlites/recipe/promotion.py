"""What a release must show before callers get it."""

from pydantic import Field

from mlites.recipe.options import Options


class Promotion(Options):
    """Requests to expect, and how a release is judged beside the one in service.

    A first release has nothing beside it; then only the absolute limits count.
    """

    requests_per_second: float = Field(50, gt=0, le=10_000, description="Expected from all callers together.")
    rows: int = Field(1, ge=1, le=4096, description="In one request.")
    p95_ms: float | None = Field(None, gt=0, description="Limit of the served latency, of HTTP requests.")
    memory_mib: float | None = Field(None, gt=0, description="Limit of what serving the model takes.")
    slower: float = Field(1.5, ge=1, description="Most times the latency of the release in service.")
    larger: float = Field(1.5, ge=1, description="Most times the memory of the release in service.")
    agreement: float = Field(0.8, ge=0, le=1, description="Least share of golden rows with the class it names now.")
    accuracy_drop_points: float = Field(
        5, ge=0, le=100, description="Most points below the release in service, on golden rows with labels."
    )
    trial_seconds: float = Field(2, gt=0, le=600, description="Under load in the sandbox.")
    shadow_seconds: float = Field(1, ge=0, le=86_400, description="Beside the release in service, unseen; 0: not.")
    canary_share: float = Field(0, ge=0, lt=1, description="Of the callers' requests, before the rest; 0: none.")
    canary_seconds: float = Field(30, gt=0, le=86_400, description="With that share.")
    watch_seconds: float = Field(2, ge=0, le=86_400, description="In service before the promotion counts as done.")
