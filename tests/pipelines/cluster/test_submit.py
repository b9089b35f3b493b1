"""Submitting: what is there is used again, by content; nothing leaves that a cluster could not run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pipelines.cluster.follow as follow_module
from mlites.errors import InputError
from mlites.recipe import Recipe
from mlites.storage import Store, fetch
from pipelines.cli import cli
from pipelines.cluster.client import Client
from pipelines.cluster.errors import ClusterError
from pipelines.cluster.package import Images, Package, make_package
from pipelines.cluster.submit import check_parameters, experiment_of, publish, start_run, upload_inputs
from tests.pipelines.cluster.conftest import SMALL
from tests.pipelines.cluster.kfp_server import Fault, KfpServer, Refusal, _Body, served


def _posts(server: KfpServer) -> list[str]:
    return [path.rpartition("/")[2] for method, path in server.requests if method == "POST"]


def test_a_run_is_started_with_its_version_experiment_account_and_parameters(
    kfp_server: KfpServer, client: Client, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = start_run(client, package, "parts-1", {"seed": 7}, "mlites-pipeline")
    run = kfp_server.runs[run_id]
    assert (run.display_name, run.service_account) == ("parts-1", "mlites-pipeline")
    assert run.runtime_config.parameters == {"run": "parts-1", "seed": 7}
    (version,) = kfp_server.versions.values()
    assert version.display_name == package.version
    assert kfp_server.experiments[run.experiment_id].display_name == "mlites-parts"
    assert capsys.readouterr().out == ""  # kfp's own lines are kept back


def test_the_same_content_makes_nothing_twice(kfp_server: KfpServer, client: Client, package: Package) -> None:
    start_run(client, package, "parts-1", {})
    start_run(client, package, "parts-2", {})
    assert _posts(kfp_server) == ["pipelines", "upload_version", "experiments", "runs", "runs"]


def test_other_content_is_another_version_of_the_same_pipeline(
    kfp_server: KfpServer, client: Client, package: Package, recipe: Recipe, tmp_path: Path
) -> None:
    other = make_package(recipe, tmp_path / "other.yaml", Images(tag="1.0-cd34"))
    again = make_package(recipe, tmp_path / "again.yaml", Images(tag="1.0-ab12"))
    assert again.version == package.version != other.version
    assert publish(client, package)[0] == publish(client, other)[0]
    assert [one.display_name for one in kfp_server.versions.values()] == [package.version, other.version]


@pytest.mark.parametrize("what", ["pipelines", "upload_version", "experiments"])
def test_where_another_client_is_first_theirs_is_used(
    kfp_server: KfpServer, client: Client, package: Package, what: str
) -> None:
    """The other creates the same thing between our look and our try: the server answers 409."""

    def other(method: str, path: str) -> None:
        if method == "POST" and path.endswith(f"/{what}"):
            kfp_server.before = None
            if what == "experiments":
                experiment_of(Client(client.access), package.name)
            else:
                publish(Client(client.access), package)

    kfp_server.before = other
    start_run(client, package, "parts-1", {})
    assert (len(kfp_server.pipelines), len(kfp_server.versions), len(kfp_server.experiments)) == (1, 1, 1)


def test_a_conflict_that_stays_is_told(kfp_server: KfpServer, client: Client, package: Package) -> None:
    kfp_server.faults = [Fault("409", "POST", "/pipelines$")]
    with pytest.raises(ClusterError, match=r"POST /apis/v2beta1/pipelines conflicts with what is there \(409\)"):
        publish(client, package)


def test_the_server_of_several_users_gets_the_namespace(package: Package) -> None:
    from pipelines.cluster.access import Access

    with served(KfpServer(several_users=True)) as server:
        start_run(Client(Access(server.address, namespace="team-a")), package, "parts-1", {})
        (pipeline,), (experiment,) = server.pipelines.values(), server.experiments.values()
        assert (pipeline.namespace, experiment.namespace) == ("team-a", "team-a")
        with pytest.raises(ClusterError, match=r"these credentials may not .* not authorized in namespace 'team-b'"):
            start_run(Client(Access(server.address, namespace="team-b")), package, "parts-1", {})


@pytest.mark.parametrize(
    ("change", "given", "says"),
    [
        ({"data": {"source": "npz", "path": "parts.npz"}}, {}, "data_path is parts.npz, a file of this machine"),
        ({"teacher": {"model": "teacher"}}, {}, "teacher_path is teacher, a file of this machine"),
        (
            {},
            {"data_path": "/tmp/x"},
            "add --upload to put it into the store, or name it in S3 with --param data_path=",
        ),
        ({}, {"sed": 1}, "--param sed: no such parameter; there are budget, data_path, only_if_changed"),
    ],
)
def test_local_files_and_unknown_parameters_are_refused_with_what_to_do(
    tmp_path: Path, change: dict[str, Any], given: dict[str, Any], says: str
) -> None:
    package = make_package(Recipe.model_validate(SMALL | change), tmp_path / "p.yaml", Images())
    with pytest.raises(InputError) as refused:
        check_parameters(package, given)
    assert says in str(refused.value)


def test_local_files_are_uploaded_under_their_content_and_once(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"png")
    (tmp_path / "reference.json").write_text("{}")
    parameters = {
        "data_path": str(tmp_path / "photos"),
        "reference_path": str(tmp_path / "reference.json"),
        "teacher_path": "s3://elsewhere/model",
        "seed": 1,
    }
    first = upload_inputs(store, parameters)
    assert set(first) == {"data_path", "reference_path"}
    stamps = {key: store.stat(key).modified for key in store.keys("inputs/")}
    assert upload_inputs(store, parameters) == first
    assert {key: store.stat(key).modified for key in store.keys("inputs/")} == stamps and len(stamps) == 2
    (tmp_path / "photos" / "cat" / "2.png").write_bytes(b"more")
    assert upload_inputs(store, parameters)["data_path"] != first["data_path"]
    with pytest.raises(InputError, match=r"data_path: .*none does not exist"):
        upload_inputs(store, {"data_path": str(tmp_path / "none")})


def test_what_was_uploaded_is_what_a_task_fetches(
    store: Store, seaweedfs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"png")
    address = upload_inputs(store, {"data_path": str(tmp_path / "photos")})["data_path"]
    assert (fetch(address, tmp_path / "got") / "cat" / "1.png").read_bytes() == b"png"


def test_the_server_refuses_what_its_models_do_not_know() -> None:
    import kfp_server_api

    with pytest.raises(Refusal, match="unknown field 'nonsense' in V2beta1Run"):
        _Body(b'{"display_name": "a", "nonsense": 1}', "application/json").model(kfp_server_api.V2beta1Run)


def test_submit_starts_a_run_and_tells_where(kfp_server: KfpServer, recipe_file: Path) -> None:
    ended = CliRunner().invoke(cli, ["submit", "parts.yaml", "--host", kfp_server.address, "--param", "seed=3"])
    assert ended.exit_code == 0, ended.output
    (run,) = kfp_server.runs.values()
    assert ended.output == f"run:      {run.display_name} ({kfp_server.address}/#/runs/details/{run.run_id})\n"
    assert run.runtime_config.parameters["seed"] == 3 and run.service_account == "mlites-pipeline"


@pytest.mark.parametrize(("outcome", "code"), [("deployed", 0), ("rejected", 3), ("failed", 1), ("canceled", 1)])
def test_waiting_shows_the_tasks_and_ends_as_mlites_run_does(
    kfp_server: KfpServer,
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_servers: None,
    outcome: str,
    code: int,
) -> None:
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.01)
    kfp_server.outcome, kfp_server.cached = outcome, ("prepare-data",)
    monkeypatch.setenv("MLITES_S3_ENDPOINT", "http://127.0.0.1:9")  # the store is out of reach: the tasks tell
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    ended = CliRunner().invoke(cli, ["submit", "parts.yaml", "--wait", "--host", kfp_server.address])
    assert ended.exit_code == code, ended.output
    lines = ended.output.splitlines()
    assert "  prepare npz  cached" in ended.output and "check-inputs  4" in ended.output
    assert lines[-2].startswith(outcome) and lines[-1].startswith("report:   s3://mlites/runs/parts-")
    assert ("teacher  failed: see its pod's log in Kubeflow" in ended.output) == (outcome == "failed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image-tag", "latest"], "this tag moves"),
        (["--image-tag", "a b"], "--image-tag 'a b': expected letters"),
        (["--image-registry", "http://r"], "--image-registry 'http://r': expected host[:port][/path]"),
        (["--store", "mlites"], "expected s3://bucket"),
        (["--param", "seed"], "--param seed: expected NAME=VALUE"),
        (["--profile", "none"], "hardware profile none: no such file"),
        ([], "where is Kubeflow Pipelines?"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    recipe_file: Path, arguments: list[str], says: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = call("submit", "parts.yaml", *arguments)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
