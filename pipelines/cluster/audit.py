"""What must hold of every pipeline that leaves for a cluster: pinned images, time limits, further tries, no secrets."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mlites.files import canonical_json
from pipelines.cluster.images import is_pinned
from pipelines.lint import lint

SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLITES_KFP_TOKEN",
    "MLITES_KFP_COOKIE",
    "MLITES_WEBHOOK_URL",
)
SHORTEST_SECRET = 6  # a shorter value would be found in any text
LARGEST_BYTES = 1_200_000  # as JSON: Kubernetes refuses objects of more than 1.5 MiB, and Argo's form of it is larger


def audit(path: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Check a compiled pipeline.

    Args:
        path: the compiled YAML: pipeline and platform.
        environment: whose secrets must not stand in it.

    Returns:
        One line a fault.
    """
    text = path.read_text()
    spec, platform = yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    faults = lint(spec)
    for name, executor in spec["deploymentSpec"]["executors"].items():
        image = executor["container"]["image"]
        if not is_pinned(image):
            faults.append(f"{name}: image {image} has no tag that stays; name the build's own with --image-tag")
        if not int(kubernetes.get(name, {}).get("activeDeadlineSeconds", 0)):
            faults.append(f"{name}: no time limit")
    faults += [f"{name}: no further tries" for name, task in _tasks(spec) if "retryPolicy" not in task]
    for variable in SECRET_VARIABLES:
        value = environment.get(variable, "")
        if len(value) >= SHORTEST_SECRET and value in text:
            faults.append(f"the value of {variable} stands in the pipeline; take it out of the recipe")
    size = sum(len(canonical_json(document)) for document in (spec, platform))
    if size > LARGEST_BYTES:
        tasks = sum(1 for _ in _tasks(spec))
        faults.append(
            f"{tasks} tasks make {size} bytes; a cluster takes about {tasks * LARGEST_BYTES // size} tasks in one run: "
            "give the recipe fewer candidates, or let more of them share their first passes"
        )
    return faults


def _tasks(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task that runs a container."""
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                yield name, task
