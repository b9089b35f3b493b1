"""A run in the cluster as it goes on: its tasks one by one, then its verdict."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlites.errors import InputError
from mlites.report.closing import first_failure
from mlites.report.summary import Summary
from mlites.run_events import read_events
from mlites.storage import MissingObject, Store
from pipelines.cluster.client import Client
from pipelines.cluster.errors import ClusterError
from pipelines.progress import Progress
from pipelines.runner import DEPLOYED, FAILED, REJECTED, WRONG_INPUT

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300.0  # how long the API may be away while a run is followed
FINISHED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
SHOWN_AT_ONCE = 3
RETRIED = re.compile(r"\([0-9]+\)$")  # what Argo adds to the name of a further try


@dataclass
class Task:
    """One task, as Kubeflow tells of it.

    Attributes:
        state: SUCCEEDED, RUNNING and so on.
        seconds: from its start to its end, if it has both.
        cached: nothing ran, since an earlier result was there.
    """

    state: str
    seconds: float | None
    cached: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a run.

    Attributes:
        code: exit code of the command line, as `mlites run` has it.
        status: deployed, rejected, failed, canceled.
        summary: as the run published it; None where the store cannot be reached.
        why: one line where there is more to tell.
    """

    code: int
    status: str
    summary: Summary | None = None
    why: str = ""


@dataclass
class _Shown:
    """What the user has been told."""

    done: set[str] = field(default_factory=set)
    running: tuple[str, ...] = ()


def follow(client: Client, run_id: str, labels: dict[str, str], progress: Progress) -> Any:
    """Show a run's tasks as they end, until it has ended itself; returns the run as Kubeflow tells it.

    While the API is away for a moment it is asked again: the run does not depend on it.

    Args:
        client: the connection.
        run_id: Kubeflow's.
        labels: names of the tasks in words.
        progress: shows them.
    """
    shown, away_since = _Shown(), None
    progress.expect(len(labels))
    while True:
        try:
            run = client.get_run(run_id)
            away_since = None
        except ClusterError as error:
            away_since = away_since or time.monotonic()
            if not (error.passing or error.status >= 500) or time.monotonic() - away_since > PATIENCE_SECONDS:
                raise
            progress.detail(f"Kubeflow does not answer: {error}")
            time.sleep(POLL_SECONDS)
            continue
        _show(dict(tasks_of(run, labels)), labels, shown, progress)
        if str(run.state) in FINISHED:
            return run
        time.sleep(POLL_SECONDS)


def tasks_of(run: Any, labels: dict[str, str]) -> Iterator[tuple[str, Task]]:
    """The pipeline's own tasks among all that Kubeflow tells of: its drivers and groups are left out."""
    details = (run.run_details.task_details if run.run_details else None) or []
    names = {**{label: name for name, label in labels.items()}, **{name: name for name in labels}}
    skipped = {one.parent_task_id for one in details if one.display_name == "executor" and _state(one) == "SKIPPED"}
    for one in details:
        name = names.get(RETRIED.sub("", str(one.display_name)))
        if name is not None:
            started, ended = one.start_time, one.end_time
            finished = started is not None and ended is not None and ended >= started
            seconds = (ended - started).total_seconds() if finished else None
            yield name, Task(_state(one), seconds, one.task_id is not None and one.task_id in skipped)


def judge(run: Any, name: str, labels: dict[str, str], store: str) -> Verdict:
    """What became of a run that has ended: as the store tells, else as its tasks' states tell.

    Args:
        run: as Kubeflow tells it.
        name: under which its page is published.
        labels: names of the tasks in words.
        store: s3:// address of the documents.
    """
    state = str(run.state)
    try:
        documents = Store(store)
        summary = Summary.model_validate_json(documents.get(f"runs/{name}/summary.json"))
    except (InputError, ValueError) as error:
        return _from_tasks(dict(tasks_of(run, labels)), state, str(error).splitlines()[0])
    if summary.status != "failed":
        return Verdict(DEPLOYED if summary.status == "deployed" else REJECTED, summary.status, summary)
    return Verdict(WRONG_INPUT if _wrong_input(documents, run.run_id) else FAILED, "failed", summary)


def _from_tasks(tasks: dict[str, Task], state: str, why: str) -> Verdict:
    """The gate's branches tell, where the store cannot be asked."""
    ran = {name for name, task in tasks.items() if task.state == "SUCCEEDED"}
    if state == "SUCCEEDED" and "deploy" in ran:
        return Verdict(DEPLOYED, "deployed", why=f"as its tasks tell; {why}")
    if state == "SUCCEEDED" and "decline" in ran:
        return Verdict(REJECTED, "rejected", why=f"as its tasks tell; {why}")
    failed = [name for name, task in tasks.items() if task.state == "FAILED"]
    where = f"at {', '.join(failed)}" if failed else "no task tells why"
    return Verdict(FAILED, "canceled" if state == "CANCELED" else "failed", why=f"{where}; {why}")


def _wrong_input(store: Store, run_id: str) -> bool:
    try:
        events = read_events(store, run_id)
    except (InputError, MissingObject):
        return False
    failed = first_failure(events)
    return any(event.input and (event.label, event.error) == failed for event in events)


def _show(tasks: dict[str, Task], labels: dict[str, str], shown: _Shown, progress: Progress) -> None:
    for name, task in tasks.items():
        if name in shown.done or task.state not in FINISHED:
            continue
        shown.done.add(name)
        if task.state == "SUCCEEDED":
            progress.end(labels[name], None if task.cached else task.seconds or 0.0)
        elif task.state == "FAILED":
            progress.fail(labels[name], "see its pod's log in Kubeflow")
    running = tuple(labels[name] for name, task in tasks.items() if task.state == "RUNNING")
    if running and running != shown.running:
        more = f" and {len(running) - SHOWN_AT_ONCE} more" if len(running) > SHOWN_AT_ONCE else ""
        progress.begin(", ".join(running[:SHOWN_AT_ONCE]) + more)
    shown.running = running


def _state(detail: Any) -> str:
    return str(detail.state)


def report_address(store: str, name: str) -> str:
    """Where the run's page is published."""
    return f"{store.rstrip('/')}/runs/{name}/{Path('report.html')}"
