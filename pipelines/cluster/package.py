"""A recipe as the pipeline that a cluster gets: compiled, checked, and named by its content."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlites.errors import InputError
from mlites.files import digest_bytes
from mlites.recipe import Recipe
from mlites.storage import DEFAULT_STORE
from pipelines.cluster.audit import audit
from pipelines.cluster.images import place_image
from pipelines.compress import build_pipeline, compile_pipeline
from pipelines.runner import code_digest


@dataclass(frozen=True)
class Images:
    """Where the cluster finds the images.

    Attributes:
        registry: host[:port][/path]; None leaves it to the cluster.
        tag: of the build; None takes this version's.
    """

    registry: str | None = None
    tag: str | None = None


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        name: of the pipeline.
        version: begins the SHA-256 of its bytes.
        path: of the YAML.
        parameters: those of the run, with their defaults.
        labels: every task's name in words.
    """

    name: str
    version: str
    path: Path
    parameters: dict[str, Any]
    labels: dict[str, str]


def make_package(recipe: Recipe, path: Path, images: Images, store: str = DEFAULT_STORE) -> Package:
    """Compile a recipe for a cluster; equal recipes and images give equal bytes.

    Args:
        recipe: a checked recipe.
        path: takes the YAML.
        images: where the cluster finds them.
        store: s3:// address, the default of the run's parameter.

    Raises:
        InputError: the pipeline must not leave: a moving tag, a secret in the recipe, more tasks than a cluster takes.
    """

    def image(name: str) -> str:
        return place_image(name, images.registry, images.tag)

    environment = {"MLITES_CODE": code_digest()}
    compile_pipeline(
        build_pipeline(recipe, environment=environment, local=False, image=image, default_store=store), path
    )
    if faults := audit(path):
        path.unlink()
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{recipe.name} cannot go to a cluster: {faults[0]}{more}")
    content = path.read_bytes()
    spec = next(yaml.load_all(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    return Package(
        spec["pipelineInfo"]["name"],
        digest_bytes(content)[:16],
        path,
        {name: one.get("defaultValue") for name, one in inputs.items()},
        _labels(spec),
    )


def local_paths(parameters: dict[str, Any]) -> dict[str, str]:
    """Parameters that name files of this machine, which a cluster cannot see."""
    paths = {name: str(parameters.get(name) or "") for name in ("data_path", "reference_path", "teacher_path")}
    return {name: path for name, path in paths.items() if path and not path.startswith("s3://")}


def _labels(spec: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                found[name] = task["taskInfo"]["name"]
    return found
