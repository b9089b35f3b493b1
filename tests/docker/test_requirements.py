"""Each image holds every package that its steps import, also late in a function; torch is in the train image alone."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipelines.cluster.tasks import FROM_IMAGE

ROOT = Path(__file__).parents[2]
OURS = ("mlites", "components", "pipelines")
BARE = {"kfp"}  # installed without what it requires
KFPS = {
    "docstring-parser",
    "googleapis-common-protos",
    "kfp-pipeline-spec",
    "kubernetes",
    "protobuf",
}  # what a step needs of that
LAZY = ROOT / "mlites" / "__init__.py"  # hands out the notebook's names when asked; no step asks
NOT_ASKED = {"notify": "mlites.data.prepare"}  # imported in a function that the step does not call
CALLED_BY_COMMANDS = {"deploy": ["mlites/serving/provide.py"]}  # of manifests


def image_of(component: Path) -> str | None:
    """The image that a component's file names, None where the file is none."""
    found = re.search(r"@dsl\.component\(base_image=(\w+)", component.read_text())
    return found[1].lower() if found else None


def requirements(kind: str) -> list[Requirement]:
    """Distributions that an image asks for, without what they bring along."""
    files = [f"{kind}.txt"] + (["torch.txt"] if kind == "train" else [])
    lines = [line for file in files for line in (ROOT / "docker/requirements" / file).read_text().splitlines()]
    return [Requirement(plain) for line in lines if (plain := line.split("#")[0].strip())]


def imported(file: Path) -> dict[str, str]:
    """Packages of others that a file imports, directly or through ours: name to the file that does."""
    seen: set[Path] = {LAZY}
    found: dict[str, str] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _modules(path):
            top = module.split(".")[0]
            if module.startswith(NOT_ASKED.get(file.stem, "-")):
                continue
            if top in OURS:
                waiting += _files(module)
            elif top not in sys.stdlib_module_names:
                found.setdefault(module if top == "google" else top, str(path.relative_to(ROOT)))
    return found


@functools.cache
def _modules(path: Path) -> tuple[str, ...]:
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {inner for node in typing for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (
                f"{node.module}.{one.name}" for one in node.names if node.module.split(".")[0] in (*OURS, "google")
            )


def _files(module: str) -> list[Path]:
    parts = module.split(".")
    paths = [ROOT.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    candidates = [one for path in paths for one in (path / "__init__.py", path.with_suffix(".py"))]
    return [path for path in candidates if path.is_file()]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _provided(module: str) -> set[str]:
    """Distributions that provide a module."""
    if module.startswith("google."):
        return {"protobuf"} if module.startswith("google.protobuf") else {_plain(module)}
    return {_plain(one) for one in _distributions().get(module, [module])}


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _with_dependencies(asked: list[Requirement]) -> set[str]:
    """The distributions, and all that they require."""
    held = set(BARE)
    waiting, seen = list(asked), set()
    while waiting:
        one = waiting.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        held.add(_plain(one.name))
        try:
            required = [Requirement(line) for line in importlib.metadata.requires(one.name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        extras = one.extras or {""}
        waiting += [two for two in required if not two.marker or any(two.marker.evaluate({"extra": x}) for x in extras)]
    return held


COMPONENTS = [path for path in sorted((ROOT / "components").glob("*.py")) if image_of(path)]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda path: path.stem)
def test_a_steps_image_holds_what_it_imports(component: Path) -> None:
    kind = image_of(component)
    assert kind in ("train", "validate", "deploy")
    held = _with_dependencies(requirements(kind))
    missing = {module: file for module, file in imported(component).items() if not _provided(module) & held}
    assert missing == {}, f"docker/requirements/{kind}.txt lacks them"


def test_what_manifests_start_finds_its_packages_too() -> None:
    for kind, files in CALLED_BY_COMMANDS.items():
        held = _with_dependencies(requirements(kind))
        for file in files:
            assert {module for module in imported(ROOT / file) if not _provided(module) & held} == set()


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        *((image_of(path), [*FROM_IMAGE, "--function_to_execute", path.stem, "--help"]) for path in COMPONENTS),
        ("deploy", ["python3", "-m", "pipelines.cli", "--help"]),  # as before Triton: mlites settle
    ],
    ids=[*(path.stem for path in COMPONENTS), "mlites"],
)
def test_what_an_image_starts_finds_its_packages(kind: str, command: list[str], tmp_path: Path) -> None:
    held = _with_dependencies(requirements(kind))
    absent = {name for name, providers in _modules_of_distributions().items() if not providers & held}
    absent = {name for name in absent if name not in OURS and not name.startswith("_")}
    (tmp_path / "sitecustomize.py").write_text(ABSENT.format(absent=absent))
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "--help" in done.stdout, done.stderr[-500:]


def _modules_of_distributions() -> dict[str, set[str]]:
    """Modules to the distributions that provide them; ``google`` is many distributions', so those below it instead."""
    found = {name: {_plain(one) for one in providers} for name, providers in _distributions().items()}
    for provider in found.pop("google"):
        for file in importlib.metadata.files(provider) or []:
            if file.parts[0] == "google" and len(file.parts) > 2:
                found.setdefault(f"google.{file.parts[1]}", set()).add(provider)
    return found


@pytest.mark.parametrize("kind", ["validate", "deploy"])
def test_only_the_train_image_holds_torch(kind: str) -> None:
    assert not _with_dependencies(requirements(kind)) & {
        "torch",
        "great-expectations",
        "pandas",
        "scikit-learn",
        "scipy",
    }


def test_every_requirement_is_one_of_the_packages_and_pinned() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    constraints = {
        _plain(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    ours = {_plain(one) for one in re.findall(r'^  "([\w.-]+)', text, re.MULTILINE)}
    for kind in ("train", "validate", "deploy"):
        names = {_plain(one.name) for one in requirements(kind)} | BARE
        assert names - constraints == set()
        assert names - ours - KFPS == set()
