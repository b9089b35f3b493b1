"""Tasks of the compiled pipeline run as their containers would: the very command, with the code that is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlites.report.summary import Summary
from mlites.run_events import read_events
from mlites.run_inputs import remember
from mlites.storage import Store
from pipelines.cluster.package import Package

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Pod:
    """Runs one task's command in a folder of its own, with the environment that the cluster would give."""

    def __init__(self, package: Package, store: Store, servers: dict[str, str], folder: Path) -> None:
        self.executors = next(yaml.load_all(package.path.read_text(), Loader=LOADER))["deploymentSpec"]["executors"]
        self.store, self.servers, self.folder = store, servers, folder

    def run(self, task: str, outputs: tuple[str, ...] = (), **parameters: Any) -> tuple[int, dict[str, Any], str]:
        """Exit code, output parameters and log."""
        container = self.executors[f"exec-{task}"]["container"]
        place = self.folder / task
        places = {name: {"outputFile": str(place / name)} for name in outputs}
        given = {
            "inputs": {"parameterValues": parameters},
            "outputs": {"parameters": places, "outputFile": str(place / "outputs.json")},
        }
        arguments = [json.dumps(given) if one == "{{$}}" else one for one in container["args"]]
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        variables = {one["name"]: one["value"] for one in container["env"]}
        environment = {**os.environ, **self.servers, **variables, "PATH": search, "MLITES_EVENTS": self.store.uri}
        ended = subprocess.run(
            [*container["command"], *arguments],
            env={**environment, "MLITES_RUN_ID": "k-1"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        found = place / "outputs.json"
        told = json.loads(found.read_text()).get("parameterValues", {}) if found.exists() else {}
        return ended.returncode, told, ended.stdout + ended.stderr


@pytest.fixture
def pod(package: Package, store: Store, seaweedfs: dict[str, str], tmp_path: Path) -> Pod:
    return Pod(package, store, seaweedfs, tmp_path)


def _check(pod: Pod, recipe: dict[str, Any], path: str, *, only_if_changed: bool) -> tuple[int, dict[str, Any], str]:
    return pod.run(
        "check-inputs",
        ("Output", "data_digest", "teacher_digest"),
        recipe=recipe,
        data_path=path,
        reference_path="",
        teacher_path="",
        seed=0,
        budget={},
        only_if_changed=only_if_changed,
        store=pod.store.uri,
    )


def test_a_scheduled_run_on_unchanged_data_ends_early_and_says_so(pod: Pod, recipe: Any, store: Store) -> None:
    plain = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    store.put("parts.npz", b"rows")
    code, told, log = _check(pod, plain, f"{store.uri}/parts.npz", only_if_changed=True)
    assert code == 0, log
    assert told["Output"] is True and len(told["data_digest"]) == 64 and told["teacher_digest"] == ""
    (event,) = read_events(store, "k-1")
    remember(store, "parts", event.found["inputs"], "parts-1")
    code, told, log = _check(pod, plain, f"{store.uri}/parts.npz", only_if_changed=True)
    assert (code, told["Output"]) == (0, False) and "nothing to do: parts-1 came to a verdict" in log
    assert _check(pod, plain, f"{store.uri}/parts.npz", only_if_changed=False)[1]["Output"] is True
    store.put("parts.npz", b"other rows")
    assert _check(pod, plain, f"{store.uri}/parts.npz", only_if_changed=True)[1]["Output"] is True


def test_a_failed_task_is_on_the_page_that_the_exit_handler_publishes(pod: Pod, recipe: Any, store: Store) -> None:
    plain = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    code, _, log = _check(pod, plain, f"{store.uri}/none.npz", only_if_changed=False)
    assert code != 0 and "none.npz does not exist" in log
    status = {"state": "FAILED", "pipelineJobResourceName": "j", "pipelineTaskName": "exit-handler-1", "error": {}}
    code, _, log = pod.run("notify", run="", job="parts-7", recipe=plain, store=store.uri, status=status)
    assert code == 0 and "failed: " in log, log
    summary = Summary.model_validate_json(store.get("runs/parts-7/summary.json"))
    assert summary.failed_step == "check-inputs" and "none.npz does not exist" in str(summary.error)
    assert b"none.npz does not exist" in store.get("runs/parts-7/report.html")
