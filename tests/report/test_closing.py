"""A run in a cluster is closed whatever became of it: its page is published, its inputs kept, the webhook told."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

import mlites.webhook as webhook
from mlites.recipe import Recipe
from mlites.report.closing import KILLED, UNKNOWN, close_run
from mlites.report.publish import failed_run
from mlites.report.summary import Summary
from mlites.run_events import Teller, read_events
from mlites.run_inputs import read_last
from mlites.storage import Store

RECIPE = {
    "name": "digits",
    "data": {"source": "digits"},
    "teacher": {"architecture": {"family": "mlp", "hidden": [64]}},
    "candidates": [{"name": "int8", "passes": [{"pass": "quantize"}]}],
}


class Hook:
    """A webhook: keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.address = ""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    state = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(state.answers.pop(0) if state.answers else 204)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}/services/T0K3N"
    monkeypatch.setattr(webhook, "FIRST_WAIT_SECONDS", 0.01)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def tell(store: Store, seaweedfs: dict[str, str], hook: Hook, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Tells of steps as tasks of the run k-1 do."""
    for name, value in {**seaweedfs, "MLITES_EVENTS": store.uri, "MLITES_RUN_ID": "k-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLITES_WEBHOOK_URL", hook.address)

    def step(name: str, *events: dict[str, Any]) -> None:
        teller = Teller(store.uri, "k-1")
        for event in events:
            teller.tell({"step": name, **event})

    return step


START = {"event": "start"}
DONE = {"event": "end", "seconds": 1.25, "success": True}
LOST = {"event": "end", "seconds": 0.5, "success": False}


def _found(**facts: Any) -> dict[str, Any]:
    return {"event": "found", "found": facts}


def _error(text: str, *, wrong: bool) -> dict[str, Any]:
    return {"event": "error", "error": text, "input": wrong}


def _summary(store: Store, run: str = "r-1") -> Summary:
    return Summary.model_validate_json(store.get(f"runs/{run}/summary.json"))


def test_a_failed_runs_page_has_error_steps_recipe_and_what_was_found(
    store: Store, tell: Callable[..., None], hook: Hook, verdict: Any, data_document: Any
) -> None:
    tell("check-inputs", START, _found(inputs="d1", same_as=None), DONE)
    tell("prepare-data", START, _found(data=data_document), DONE)
    tell("validate-int8", START, _found(verdict=store.put_document(verdict("int8"))), DONE)
    tell("select", START, _error("no room on the disk", wrong=False), LOST)
    close_run(store.uri, "r-1", RECIPE, "FAILED")
    summary = _summary(store)
    assert (summary.status, summary.error, summary.failed_step) == ("failed", "no room on the disk", "select")
    assert [(one.name, one.seconds) for one in summary.steps] == [
        ("check-inputs", 1.25),
        ("prepare-data", 1.25),
        ("validate-int8", 1.25),
    ]
    assert summary.candidates[0].accuracy is not None and summary.data is not None
    page = store.get("runs/r-1/report.html").decode()
    assert "no room on the disk" in page and "family: mlp" in page and "prepare-data" in page
    (body,) = hook.got
    assert body["status"] == "failed" and body["failed_step"] == "select" and body["error"] == "no room on the disk"
    assert body["report"] == f"{store.uri}/runs/r-1/report.html" and body["text"].startswith("mlites digits: failed: ")
    assert read_last(store, "digits") is None  # tried again the next time


def test_a_step_that_was_killed_is_named(store: Store, tell: Callable[..., None]) -> None:
    tell("prepare-data", START, DONE)
    tell("train-teacher", START)
    close_run(store.uri, "r-1", RECIPE, "FAILED")
    assert (_summary(store).failed_step, _summary(store).error) == ("train-teacher", KILLED)


def test_a_run_of_which_no_step_told_has_a_page_too(store: Store, tell: Callable[..., None]) -> None:
    close_run(store.uri, "r-1", RECIPE, "FAILED")
    assert (_summary(store).failed_step, _summary(store).error) == (None, UNKNOWN)


def test_a_further_try_that_succeeds_writes_over_the_failure(store: Store, tell: Callable[..., None]) -> None:
    tell("prepare-data", START, _error("S3 was away", wrong=True), LOST)
    tell("prepare-data", START, DONE)
    (event,) = read_events(store, "k-1")
    assert event.success and event.error is None


def test_a_run_with_a_verdict_gets_its_steps_and_is_remembered(
    store: Store, tell: Callable[..., None], hook: Hook, tmp_path: Any, verdict: Any, data_document: Any
) -> None:
    """What the report step published is completed, not replaced."""
    failed_run(tmp_path, "r-1", Recipe.model_validate(RECIPE), "-", None, [], None, data_document, [verdict("int8")])
    published = Summary.model_validate_json((tmp_path / "summary.json").read_bytes())
    rejected = published.model_copy(update={"status": "rejected", "error": None, "reason": "too slow"})
    (tmp_path / "summary.json").write_text(rejected.model_dump_json())
    store.put_folder("runs/r-1", tmp_path)
    tell("check-inputs", START, _found(inputs="d1", same_as=None), DONE)
    close_run(store.uri, "r-1", RECIPE, "SUCCEEDED")
    summary = _summary(store)
    assert summary.status == "rejected" and [one.name for one in summary.steps] == ["check-inputs"]
    assert read_last(store, "digits") == {"format": "mlites-schedule/1", "inputs": "d1", "run": "r-1"}
    assert hook.got[0]["status"] == "rejected" and hook.got[0]["reason"] == "too slow"


def test_a_run_that_ended_early_says_so_and_tells_nobody(
    store: Store, tell: Callable[..., None], hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    tell("check-inputs", START, _found(inputs="d1", same_as="r-0"), DONE)
    close_run(store.uri, "r-1", RECIPE, "SUCCEEDED")
    assert capsys.readouterr().out == "nothing to do: the inputs are those of r-0, which came to a verdict\n"
    assert store.keys("runs/") == [] and hook.got == []


@pytest.mark.parametrize(
    ("answers", "calls", "says"),
    [
        ([500, 503, 200], 3, "notified"),
        ([500] * 9, 4, "answered 500"),
        ([404], 1, "answered 404"),
        ([302], 1, "answered 302"),
    ],
)
def test_the_webhook_is_tried_a_few_times_and_never_fails_the_run(
    store: Store,
    tell: Callable[..., None],
    hook: Hook,
    capsys: pytest.CaptureFixture[str],
    answers: list[int],
    calls: int,
    says: str,
) -> None:
    hook.answers = answers
    close_run(store.uri, "r-1", RECIPE, "FAILED")
    out = capsys.readouterr().out
    assert len(hook.got) == calls and says in out and "T0K3N" not in out


def test_a_webhook_that_is_away_or_no_address_never_fails_the_run(
    store: Store, tell: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, says in (("http://127.0.0.1:9/T0K3N", "127.0.0.1 does not answer"), ("T0K3N", "must start with http")):
        monkeypatch.setenv("MLITES_WEBHOOK_URL", address)
        close_run(store.uri, "r-1", RECIPE, "FAILED")
        out = capsys.readouterr().out
        assert says in out and "T0K3N" not in out


def test_where_the_store_is_away_the_closing_step_says_so_and_ends_well(
    tell: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLITES_S3_ENDPOINT", "http://127.0.0.1:9")
    close_run("s3://mlites", "r-1", RECIPE, "FAILED")
    assert "mind: the run could not be closed: " in capsys.readouterr().out
