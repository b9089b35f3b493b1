"""The last step of a run in a cluster: its page is published whatever became of it, and whoever waits is told."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlites.recipe import Recipe
from mlites.report.publish import failed_run, finish_run
from mlites.report.summary import Step, Summary
from mlites.run_events import StepEvent, read_events
from mlites.run_inputs import remember
from mlites.storage import MissingObject, Store
from mlites.webhook import post

FORMAT = "mlites-notification/1"
KILLED = (
    "ended without a word: it ran out of memory or out of time, or its node was lost; its pod in Kubeflow says which"
)
UNKNOWN = "no step told of a failure: a pod could not start, or the run was stopped; its pods in Kubeflow say why"


@dataclass(frozen=True)
class Ending:
    """What became of a run.

    Attributes:
        summary: None where the run ended early, its inputs being those of `same_as`.
        same_as: name of that earlier run.
    """

    summary: Summary | None
    same_as: str | None = None


def end_run(store: Store, run: str, recipe: Recipe, events: Sequence[StepEvent]) -> Ending:
    """Publish the page and summary of a run under ``runs/``: complete those that it wrote, or write those of a failure.

    Args:
        store: holds the documents.
        run: its name.
        recipe: the whole recipe.
        events: what its steps told.
    """
    checked = next((event.found for event in events if "inputs" in event.found), {})
    if checked.get("same_as"):
        return Ending(None, checked["same_as"])
    steps = [
        Step(name=event.label, seconds=event.seconds, cached=False)
        for event in events
        if event.success and event.seconds is not None
    ]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        try:
            store.get_folder(f"runs/{run}", folder)
            summary = finish_run(folder, steps, None, None)
        except MissingObject:
            summary = _failed(store, run, recipe, events, steps, folder)
        store.put_folder(f"runs/{run}", folder)
    if summary.status != "failed" and "inputs" in checked:
        remember(store, recipe.name, checked["inputs"], run)
    return Ending(summary)


def first_failure(events: Sequence[StepEvent]) -> tuple[str | None, str]:
    """Which step a run failed at, in words, and of what."""
    for event in events:
        if event.error is not None:
            return event.label, event.error
    for event in events:
        if event.seconds is None:
            return event.label, KILLED
    return None, UNKNOWN


def notification(ending: Ending, run: str, recipe: str, report: str) -> dict[str, Any]:
    """The JSON body that the webhook gets.

    Args:
        ending: what became of the run.
        run: its name.
        recipe: the recipe's name.
        report: address of the page.
    """
    summary = ending.summary
    if summary is None:
        raise ValueError(f"{run} ended early, which nobody is told")
    served = summary.deployment
    why = f"{summary.failed_step or 'the run'}: {summary.error}" if summary.error else summary.reason
    return {
        "format": FORMAT,
        "text": f"mlites {recipe}: {summary.status}: {why} ({report})",
        "run": run,
        "recipe": recipe,
        "status": summary.status,
        "failed_step": summary.failed_step,
        "error": summary.error,
        "selected": summary.selected,
        "reason": summary.reason,
        "model": served.model if served else None,
        "version": served.version if served else None,
        "report": report,
    }


def close_run(store: str, run: str, recipe: dict[str, Any], state: str) -> None:
    """End a run in a cluster. Whatever goes wrong is printed and goes no further: this step must not fail the run.

    Args:
        store: s3:// address of the documents.
        run: name of the run.
        recipe: the whole recipe.
        state: that Kubeflow says the run is in.
    """
    try:
        documents, checked = Store.open(store), Recipe.model_validate(recipe)
        events = read_events(Store.open(os.environ["MLITES_EVENTS"]), os.environ["MLITES_RUN_ID"])
        ending = end_run(documents, run, checked, events)
        if ending.summary is None:
            print(f"nothing to do: the inputs are those of {ending.same_as}, which came to a verdict")
            return
        print(f"{ending.summary.status}: {documents.uri}/runs/{run}/report.html (Kubeflow: {state})")
        if address := os.environ.get("MLITES_WEBHOOK_URL"):
            body = notification(ending, run, checked.name, f"{documents.uri}/runs/{run}/report.html")
            print(post(address, body) or "notified")
    except Exception as error:
        print(f"mind: the run could not be closed: {type(error).__name__}: {error}")


def _failed(
    store: Store, run: str, recipe: Recipe, events: Sequence[StepEvent], steps: list[Step], folder: Path
) -> Summary:
    step, error = first_failure(events)
    data = next((event.found["data"] for event in events if "data" in event.found), None)
    verdicts = [store.get_document(event.found["verdict"]) for event in events if "verdict" in event.found]
    return failed_run(folder, run, recipe, error, step, steps, None, data, verdicts)
