"""What became of each step of a run in a cluster, told by the steps themselves in the store.

Kubeflow knows that a pod failed, but not why. So each step writes one small object, ``events/<run>/<step>.json``, when
it starts and again when it ends; whoever closes or follows the run reads them. A further try writes over the earlier.
"""

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from mlites.errors import InputError
from mlites.files import canonical_json
from mlites.storage import Store

FORMAT = "mlites-event/1"


class StepEvent(BaseModel):
    """What is known of one step.

    Attributes:
        step: its name in the pipeline.
        label: the same in words.
        started: when its last try began, ISO 8601.
        seconds: of the last try; None while it runs, or where it was killed.
        error: one line, if it failed.
        input: the error is one of the input.
        failed: error of the candidate that the step worked on, where the run goes on.
        found: what it tells those that close the run.
    """

    model_config = ConfigDict(extra="ignore")

    step: str
    label: str = ""
    started: str = ""
    seconds: float | None = None
    success: bool = False
    error: str | None = None
    input: bool = False
    failed: str | None = None
    found: dict[str, Any] = {}


class Teller:
    """One process's steps, told to the store. It never fails or stops a step: what cannot be told is printed."""

    def __init__(self, store: str, run: str) -> None:
        self.store, self.run = store, run
        self._steps: dict[str, StepEvent] = {}

    def tell(self, event: dict[str, Any]) -> None:
        """Take in an event as the local runner gets it, and write the step's object where it starts or ends."""
        kind, name = event["event"], event["step"]
        if kind == "start":
            words, now = os.environ.get("MLITES_LABEL", name), datetime.now(UTC).isoformat()
            self._steps[name] = StepEvent(step=name, label=words, started=now)
        step = self._steps.setdefault(name, StepEvent(step=name))
        if kind == "failed":
            step.failed = event["error"]
        elif kind == "error":
            step.error, step.input = event["error"], event["input"]
        elif kind == "found":
            step.found.update(event["found"])
        elif kind == "end":
            step.seconds, step.success = round(event["seconds"], 3), event["success"]
        if kind in ("start", "end"):
            self._write(step)

    def _write(self, step: StepEvent) -> None:
        try:
            body = canonical_json({"format": FORMAT, **step.model_dump(mode="json")})
            Store.open(self.store).put(f"events/{self.run}/{step.step}.json", body)
        except Exception as error:  # the step itself says if it cannot do without the store
            print(f"mind: this step could not tell the store of itself: {error}", file=sys.stderr, flush=True)


def read_events(store: Store, run: str) -> list[StepEvent]:
    """What the steps of a run told, in the order in which they began."""
    found = []
    for key in store.keys(f"events/{run}/"):
        document = json.loads(store.get(key))
        if document.get("format") != FORMAT:
            raise InputError(f"{key}: expected {FORMAT}, got {str(document.get('format'))[:40]!r}")
        found.append(StepEvent.model_validate(document))
    return sorted(found, key=lambda event: (event.started, event.step))
