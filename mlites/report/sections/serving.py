"""What Triton serves now, and the commands for it."""

from mlites.report.calls import Signature, curl_call, python_call, rollback_commands
from mlites.report.summary import DeploymentSummary


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
