"""Following a run: its tasks are shown as they are, an API that is away is waited for, the verdict is the run's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines.cluster.follow as follow_module
from mlites.recipe import Recipe
from mlites.report.publish import failed_run
from mlites.report.summary import Summary
from mlites.run_events import Teller
from mlites.storage import Store
from pipelines.cluster.access import Access
from pipelines.cluster.client import Client
from pipelines.cluster.errors import ClusterError
from pipelines.cluster.follow import Verdict, follow, judge
from pipelines.cluster.package import Package
from pipelines.cluster.submit import start_run
from pipelines.progress import Progress
from tests.pipelines.cluster.kfp_server import Fault, KfpServer


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.01)


def _follow(client: Client, package: Package) -> Any:
    run_id = start_run(client, package, "parts-1", {})
    with Progress("parts") as progress:
        return follow(client, run_id, package.labels, progress)


def test_every_task_is_shown_once_and_kubeflows_own_are_left_out(
    kfp_server: KfpServer, client: Client, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp_server.cached = ("train-teacher",)
    assert _follow(client, package).state == "SUCCEEDED"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(package.labels) - 1 == 11  # one branch does not run
    assert [line for line in lines if line.endswith("  cached")] == [line for line in lines if "  teacher  " in line]
    assert all(line.startswith("✓") and "/11" in line for line in lines)
    assert not any("driver" in line or "exit-handler" in line or "executor" in line for line in lines)


@pytest.mark.parametrize("fault", ["500", "503", "reset", "truncated"])
def test_moments_without_the_api_do_not_end_the_following(
    kfp_server: KfpServer, client: Client, package: Package, fault: str
) -> None:
    run_id = start_run(client, package, "parts-1", {})
    kfp_server.faults = [Fault(fault, "GET", "/runs/", times=7)]
    with Progress("parts") as progress:
        assert follow(client, run_id, package.labels, progress).state == "SUCCEEDED"


def test_an_api_that_stays_away_is_told_after_a_while(
    kfp_server: KfpServer, client: Client, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start_run(client, package, "parts-1", {})
    monkeypatch.setattr(follow_module, "PATIENCE_SECONDS", 0.2)
    kfp_server.faults = [Fault("500", "GET", "/runs/", times=10_000)]
    with Progress("parts") as progress, pytest.raises(ClusterError, match=r"failed there \(500\)"):
        follow(client, run_id, package.labels, progress)


@pytest.mark.parametrize(("fault", "says"), [("401", r"\(401\)"), ("403", "may not GET"), ("404", r"\(404\)")])
def test_what_will_not_pass_ends_the_following_at_once(
    kfp_server: KfpServer, client: Client, package: Package, fault: str, says: str
) -> None:
    run_id = start_run(client, package, "parts-1", {})
    kfp_server.faults = [Fault(fault, "GET", "/runs/")]
    with Progress("parts") as progress, pytest.raises(ClusterError, match=says):
        follow(client, run_id, package.labels, progress)


def test_a_token_renewed_in_its_file_is_used_while_following(
    kfp_server: KfpServer, package: Package, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("first")
    kfp_server.token = "first"
    client = Client(Access(kfp_server.address, token_file=tmp_path / "token"))
    run_id = start_run(client, package, "parts-1", {})

    def renew(method: str, path: str) -> None:
        kfp_server.token = "second"
        (tmp_path / "token").write_text("second")
        kfp_server.before = lambda *_: None

    client.get_run(run_id)
    renew("", "")
    with Progress("parts") as progress:
        assert follow(client, run_id, package.labels, progress).state == "SUCCEEDED"


@pytest.fixture
def published(
    store: Store, seaweedfs: dict[str, str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Publishes the summary of the run parts-1, as the run itself does."""
    for name, value in seaweedfs.items():
        monkeypatch.setenv(name, value)

    def publish(status: str, error: str | None = None) -> None:
        failed_run(tmp_path / "r", "parts-1", recipe, error or "-", "prepare npz" if error else None, [], None)
        summary = Summary.model_validate_json((tmp_path / "r" / "summary.json").read_bytes())
        told = summary.model_copy(update={"status": status, "error": error, "reason": "as measured"})
        store.put("runs/parts-1/summary.json", told.model_dump_json().encode())

    return publish


@pytest.mark.parametrize(("status", "code"), [("deployed", 0), ("rejected", 3)])
def test_the_stores_summary_is_the_verdict(
    client: Client, package: Package, store: Store, published: Callable[..., None], status: str, code: int
) -> None:
    published(status)
    verdict = judge(_follow(client, package), "parts-1", package.labels, store.uri)
    assert (verdict.code, verdict.status) == (code, status)
    assert verdict.summary is not None and verdict.summary.reason == "as measured"


@pytest.mark.parametrize(("wrong", "code"), [(True, 2), (False, 1)])
def test_wrong_input_and_a_failure_of_a_step_have_exit_codes_of_their_own(
    kfp_server: KfpServer,
    client: Client,
    package: Package,
    store: Store,
    published: Callable[..., None],
    wrong: bool,
    code: int,
) -> None:
    kfp_server.outcome = "failed"
    published("failed", "it holds no labels")
    run = _follow(client, package)
    teller = Teller(store.uri, run.run_id)
    for event in (
        {"event": "start"},
        {"event": "error", "error": "it holds no labels", "input": wrong},
        {"event": "end", "seconds": 1.0, "success": False},
    ):
        teller.tell({"step": "prepare-data", **event})
    verdict = judge(run, "parts-1", package.labels, store.uri)
    assert (verdict.code, verdict.status) == (code, "failed")
    assert verdict.summary is not None and verdict.summary.error == "it holds no labels"


@pytest.mark.parametrize(
    ("outcome", "code", "status", "why"),
    [
        ("deployed", 0, "deployed", "as its tasks tell; "),
        ("rejected", 3, "rejected", "as its tasks tell; "),
        ("failed", 1, "failed", "at train-teacher; "),
        ("canceled", 1, "canceled", "no task tells why; "),
    ],
)
def test_without_the_stores_summary_the_tasks_tell(
    kfp_server: KfpServer,
    client: Client,
    package: Package,
    store: Store,
    published: Callable[..., None],
    outcome: str,
    code: int,
    status: str,
    why: str,
) -> None:
    kfp_server.outcome = outcome
    verdict = judge(_follow(client, package), "parts-1", package.labels, store.uri)
    assert (verdict.code, verdict.status, verdict.summary) == (code, status, None)
    assert verdict.why.startswith(why) and "summary.json does not exist" in verdict.why
    assert isinstance(verdict, Verdict)
