"""What must not leave for a cluster is found: moving images, secrets, tasks without limits, pipelines too large."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlites.errors import InputError
from mlites.recipe import Recipe
from pipelines.cluster import audit as audit_module
from pipelines.cluster.audit import audit
from pipelines.cluster.images import is_pinned, place_image
from pipelines.cluster.package import Images, Package, make_package
from tests.pipelines.cluster.conftest import SMALL

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _image(name: str) -> Callable[[Any, Any], None]:
    def change(spec: Any, platform: Any) -> None:
        spec["deploymentSpec"]["executors"]["exec-gate"]["container"]["image"] = name

    return change


def _no_limit(spec: Any, platform: Any) -> None:
    del platform["exec-gate"]["activeDeadlineSeconds"]


def _no_retry(spec: Any, platform: Any) -> None:
    del spec["root"]["dag"]["tasks"]["notify"]["retryPolicy"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_image("mlites/deploy"), "exec-gate: image mlites/deploy has no tag that stays"),
        (_image("mlites/deploy:latest"), "exec-gate: image mlites/deploy:latest has no tag that stays"),
        (_image("host:5000/deploy"), "exec-gate: image host:5000/deploy has no tag that stays"),
        (_no_limit, "exec-gate: no time limit"),
        (_no_retry, "notify: no further tries"),
    ],
)
def test_each_fault_is_found(package: Package, tmp_path: Path, change: Callable[[Any, Any], None], says: str) -> None:
    spec, platform = yaml.load_all(package.path.read_text(), Loader=LOADER)
    change(spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    (tmp_path / "p.yaml").write_text(yaml.dump_all([spec, platform], Dumper=DUMPER))
    (fault,) = audit(tmp_path / "p.yaml")
    assert fault.startswith(says)


def test_a_secrets_value_is_found_and_not_told(package: Package) -> None:
    assert audit(package.path, {"AWS_SECRET_ACCESS_KEY": "", "MLITES_KFP_TOKEN": "abc"}) == []
    (fault,) = audit(package.path, {"AWS_SECRET_ACCESS_KEY": "s3://data/parts.npz"})  # any text that stands in it
    assert fault == "the value of AWS_SECRET_ACCESS_KEY stands in the pipeline; take it out of the recipe"


def test_a_recipe_that_holds_a_key_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pa55w0rd-of-mine")
    leaking = SMALL | {"data": {"source": "npz", "path": "s3://data/pa55w0rd-of-mine/parts.npz"}}
    with pytest.raises(InputError, match="parts cannot go to a cluster: the value of AWS_SECRET_ACCESS_KEY") as refused:
        make_package(Recipe.model_validate(leaking), tmp_path / "p.yaml", Images())
    assert "pa55w0rd" not in str(refused.value) and not (tmp_path / "p.yaml").exists()


def test_more_tasks_than_a_cluster_takes_are_refused(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "LARGEST_BYTES", 20_000)
    (fault,) = audit(package.path)
    assert fault.startswith("12 tasks make ") and "a cluster takes about" in fault and "fewer candidates" in fault


@pytest.mark.parametrize("tag", ["latest", "Latest", "main", "nightly"])
def test_a_tag_that_moves_is_refused(tag: str) -> None:
    with pytest.raises(InputError, match=f"--image-tag {tag}: this tag moves"):
        place_image("mlites/train:1.0", None, tag)


@pytest.mark.parametrize("registry", ["", "http://r", "r/", "r//x", "-r", "r:port", "r x"])
def test_what_is_no_registry_is_refused(registry: str) -> None:
    with pytest.raises(InputError, match="--image-registry"):
        place_image("mlites/train:1.0", registry, "1.0")


@pytest.mark.parametrize("tag", ["", "a b", ".a", "a/b", "a" * 129, "ä"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(InputError, match="--image-tag"):
        place_image("mlites/train:1.0", None, tag)


def test_an_image_keeps_its_name_in_any_registry() -> None:
    assert place_image("mlites/train:1.0", None, None) == "mlites/train:1.0"
    assert place_image("mlites/train:1.0", "r.example:5000/a/b-c", "1.0-x") == "r.example:5000/a/b-c/mlites/train:1.0-x"
    assert not is_pinned("a/b@sha256:123")
