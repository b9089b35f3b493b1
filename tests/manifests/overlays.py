"""The manifests as a cluster would get them."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = ("kind", "minikube", "production")
Document = dict[str, Any]


@functools.cache
def documents(overlay: str) -> tuple[Document, ...]:
    """Every object of an overlay, as ``kubectl kustomize`` prints it."""
    assert shutil.which("kubectl"), "the manifests are tested with kubectl: kubernetes.io/docs/tasks/tools"
    command = ["kubectl", "kustomize", str(MANIFESTS / "overlays" / overlay)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(one for one in yaml.safe_load_all(printed) if one)


def of_kind(overlay: str, *kinds: str) -> list[Document]:
    """The objects of some kinds."""
    return [one for one in documents(overlay) if one["kind"] in kinds]


def named(overlay: str, kind: str, name: str, namespace: str = "mlites") -> Document:
    """One object."""
    found = [one for one in of_kind(overlay, kind) if one["metadata"]["name"] == name]
    return next(one for one in found if one["metadata"].get("namespace", namespace) == namespace)


def pod_templates(overlay: str) -> Iterator[tuple[str, Document]]:
    """Every pod that an overlay makes, with the name of what makes it."""
    for one in documents(overlay):
        spec = one.get("spec", {})
        place = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield place, one
        elif one["kind"] == "CronJob":
            yield place, spec["jobTemplate"]["spec"]["template"]
        elif "template" in spec and "containers" in spec["template"].get("spec", {}):
            yield place, spec["template"]


def containers(pod: Document) -> list[Document]:
    """All containers of a pod, those that come first among them."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]


def matches(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    for one in selector.get("matchExpressions", []):
        value = labels.get(one["key"])
        wanted &= {
            "In": value in one.get("values", []),
            "NotIn": value not in one.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[one["operator"]]
    return wanted
