"""A small pipeline as a cluster gets it, and a server of KFP's API to send it to."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlites.recipe import Recipe
from pipelines import cli
from pipelines.cluster.access import Access
from pipelines.cluster.client import Client
from pipelines.cluster.package import Images, Package, make_package
from tests.pipelines.cluster.kfp_server import KfpServer, served

KFP_VARIABLES = ("HOST", "TOKEN", "TOKEN_FILE", "COOKIE", "CA", "NAMESPACE", "TIMEOUT")
SMALL: dict[str, Any] = {
    "name": "parts",
    "data": {"source": "npz", "path": "s3://data/parts.npz"},
    "teacher": {"architecture": {"family": "mlp"}},
    "candidates": [{"name": "int8", "passes": [{"pass": "quantize"}]}],
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KFP_VARIABLES:
        monkeypatch.delenv(f"MLITES_KFP_{name}", raising=False)


@pytest.fixture
def kfp_server() -> Iterator[KfpServer]:
    """Kubeflow for one user, on a free port."""
    with served(KfpServer()) as server:
        yield server


@pytest.fixture
def client(kfp_server: KfpServer) -> Client:
    """A connection to it."""
    return Client(Access(kfp_server.address))


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """One candidate on data in S3."""
    return Recipe.model_validate(SMALL)


@pytest.fixture(scope="session")
def package(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The recipe's pipeline."""
    return make_package(recipe, tmp_path_factory.mktemp("package") / "parts.yaml", Images(tag="1.0-ab12"))


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe as a file in the current folder."""
    import yaml

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "parts.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line as a user has it: exit code, standard output and standard error."""

    def main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlites", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return code, *capsys.readouterr()

    return main
