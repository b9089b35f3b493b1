"""What Triton serves now, with which settings and why, and the commands for it."""

from dataclasses import dataclass

from mlites.report.calls import Signature, curl_call, python_call, rollback_commands
from mlites.report.summary import DeploymentSummary, SettingSummary, SweepSummary
from mlites.report.words import NOTHING, milliseconds, rate, significant

COLUMNS = ["Delay", "Instances", "Threads", "Throughput", "p50", "p95", "p99", "Mean batch", "Limit"]


def list_commands(
    deployment: DeploymentSummary | None, signature: Signature | None, classes: list[str]
) -> dict[str, str | None]:
    """Commands to paste, those for which the run knows enough."""
    if deployment is None or not deployment.triton_url:
        return {"curl": None, "python": None, "rollback": None}
    return {
        "curl": curl_call(deployment, signature) if signature else None,
        "python": python_call(deployment, signature, classes) if signature else None,
        "rollback": rollback_commands(deployment),
    }


@dataclass(frozen=True)
class Tried:
    """A row of the table of settings."""

    max_batch_size: int
    chosen: bool
    figures: list[str]
    meets: bool
    error: str | None


def list_settings(sweep: SweepSummary | None) -> list[Tried]:
    """Every setting that was tried, the one in service first."""
    if sweep is None:
        return []
    return [
        Tried(one.max_batch_size, index == 0, _figures(one), one.meets, one.error)
        for index, one in enumerate(sweep.settings)
    ]


def _figures(one: SettingSummary) -> list[str]:
    times = [NOTHING if took is None else milliseconds(took) for took in (one.p50_ms, one.p95_ms, one.p99_ms)]
    return [
        f"{one.max_queue_delay_us} µs",
        str(one.instances),
        str(one.threads),
        NOTHING if one.rows_per_second is None else rate(one.rows_per_second),
        *times,
        NOTHING if one.mean_batch is None else significant(one.mean_batch, 2),
    ]


def describe_sweep(sweep: SweepSummary | None) -> str | None:
    """How the settings were tried, in a sentence."""
    if sweep is None:
        return None
    rows = f"{sweep.rows_per_request} row{'s' if sweep.rows_per_request != 1 else ''} each"
    callers = sorted({one.callers for one in sweep.settings if one.callers is not None})
    if sweep.arrival.rate_per_second is not None:
        who = f"{sweep.arrival.rate_per_second:g} requests a second from independent callers, {rows}"
    else:
        who = f"callers that ask again when they are answered ({', '.join(map(str, callers))} at once), {rows}"
    limit = "" if sweep.p95_ms is None else f"; the 95th percentile may be {milliseconds(sweep.p95_ms)}"
    return f"Tried on a Triton without other callers: {who}{limit}. Chosen: {sweep.reason}."
