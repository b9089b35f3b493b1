"""Refuse what kfp.local runs without an error but computes wrongly.

Found by experiment with KFP 2.17: see each rule's message. A cluster runs all of these correctly, so the rules bind
local runs alone.
"""

import re
from collections.abc import Iterator
from typing import Any

_BOOLEAN_TEST = re.compile(
    r"^!?\(?\s*inputs\.parameter_values\['pipelinechannel--(?P<channel>[^']+)'\]\s*==\s*(true|false)\s*\)?$"
)


def lint(pipeline_spec: dict[str, Any]) -> list[str]:
    """Check a compiled pipeline.

    Args:
        pipeline_spec: The IR, as its YAML reads.

    Returns:
        One line a fault, empty if the local runner computes what a cluster would.
    """
    faults = list(_executors(pipeline_spec))
    if str(pipeline_spec.get("defaultPipelineRoot", "")).startswith(("s3://", "gs://", "minio://")):
        faults.append("pipeline root: kfp.local would write to a local folder of that name; leave it out")
    for dag_name, dag in _dags(pipeline_spec):
        for name, task in dag.get("tasks", {}).items():
            place = f"{dag_name}/{name}"
            faults.extend(f"{place}: {fault}" for fault in _condition(task))
            faults.extend(f"{place}: {fault}" for fault in _loop(task))
    return faults


def _dags(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "root", spec["root"]["dag"]
    for name, component in spec.get("components", {}).items():
        if "dag" in component:
            yield name, component["dag"]


def _executors(spec: dict[str, Any]) -> Iterator[str]:
    for name, executor in spec.get("deploymentSpec", {}).get("executors", {}).items():
        command = executor.get("container", {}).get("command", [])
        in_task = any("kfp.dsl.executor_main" in part for part in command)
        if "container" in executor and not in_task and command[-2:] != ["-m", "components"]:
            yield f"{name}: a container component cannot run in a subprocess; make it a Python component"


def _condition(task: dict[str, Any]) -> Iterator[str]:
    condition = task.get("triggerPolicy", {}).get("condition", "")
    for part in filter(None, re.split(r"&&|\|\|", condition)):
        match = _BOOLEAN_TEST.match(part.strip())
        if not match:
            yield (
                f"condition {part.strip()!r}: kfp.local takes comparisons of numbers and strings for false in places; "
                "return a bool from a task and test that"
            )
        elif not match["channel"].endswith("-Output"):
            yield f"condition on {match['channel']!r}: kfp.local finds only one named Output; return one bool"


def _loop(task: dict[str, Any]) -> Iterator[str]:
    if "parameterIterator" not in task and "artifactIterator" not in task:
        return
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "taskOutputParameter" in source and not name.endswith("-loop-item"):
            items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter")
            if name != items:
                yield f"loop uses the outer parameter {name!r}: kfp.local gives it the loop item; pass an artifact"
