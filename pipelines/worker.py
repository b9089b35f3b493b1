"""The process that runs one pipeline through kfp.local; the runner starts it in a process group of its own."""

import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from mlites.lifeline import die_with


class _CacheHits(logging.Handler):
    """Turns the orchestrator's word that a task came from the cache into an event."""

    def __init__(self, events: Path) -> None:
        super().__init__(logging.INFO)
        self.events = events

    def emit(self, record: logging.LogRecord) -> None:
        if match := re.match(r"Task (\S+) cache hit", record.getMessage()):
            write_event(self.events, {"step": match[1], "event": "cached"})


def write_event(events: Path, event: dict[str, Any]) -> None:
    """Append one JSON line."""
    with events.open("a") as file:
        file.write(json.dumps(event) + "\n")


def main() -> None:
    """Read the job from standard input, compile, lint and run it; exit 0 if every step succeeded."""
    die_with(int(os.environ["MLITES_RUNNER_PID"]), group=True)
    events = Path(os.environ["MLITES_EVENTS"])
    os.environ["MLITES_RUNNER_PID"] = str(os.getpid())
    # Images and display names mean nothing to a subprocess, and KFP says so for every task.
    warnings.filterwarnings("ignore", message=r"(You may be attemping|Task .* no effect)")

    import yaml
    from kfp import components, local

    from mlites.recipe import Recipe
    from pipelines.compress import build_pipeline, compile_pipeline
    from pipelines.lint import lint

    job = json.load(sys.stdin)  # comes when the servers are up; the imports above take as long
    os.environ.update(job["variables"])
    compiled, home = Path(job["compiled"]), Path(job["home"])
    pipeline = build_pipeline(Recipe.model_validate(job["recipe"]), environment=job["environment"], local=True)
    compile_pipeline(pipeline, compiled)
    spec = next(yaml.safe_load_all(compiled.read_text()))
    if faults := lint(spec):
        write_event(events, {"step": "compile", "event": "error", "error": "; ".join(faults), "input": False})
        raise SystemExit(1)
    write_event(events, {"event": "plan", "steps": _plan(spec)})
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger().addHandler(_CacheHits(events))
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(home / "artifacts"),
        workspace_root=job["workspace"],
        raise_on_error=True,
        enable_caching=True,
        cache_root=str(home / "cache"),
    )
    try:
        components.load_component_from_file(str(compiled))(**job["arguments"])
    except RuntimeError as error:  # a step failed; it has told why
        raise SystemExit(f"{error}") from None


def _plan(spec: dict[str, Any]) -> dict[str, str]:
    """Names of all steps with their labels, those of both branches of a condition among them."""
    plan: dict[str, str] = {}
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                plan[name] = task["taskInfo"]["name"]
    return plan


if __name__ == "__main__":
    main()
