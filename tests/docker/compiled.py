"""Run a compiled pipeline as a cluster would: the IR decides which tasks run, in which order and with what.

This takes the place of KFP's driver and launcher, which need Kubernetes: it reads the IR, fills in each task's inputs,
and hands image, command line, variables and executor input to whoever starts containers. Artifacts cross S3 between
tasks, so that no task sees another's files.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlites.storage import Store

PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
CONDITION = re.compile(r"^(!?)\(?inputs\.parameter_values\['([^']+)'\] == (true|false)\)?$")
S3_MOUNT = "/s3"  # KFP gives each task this folder for artifacts whose address begins with s3://
OUTPUTS_MOUNT = "/tmp/kfp"


@dataclass(frozen=True)
class Step:
    """One container as the cluster would start it.

    Attributes:
        name: of the task.
        image: of the executor.
        command: the whole command line, the executor input filled in.
        variables: of the IR, and those that secrets and config maps give.
        artifacts: folder that stands at S3_MOUNT; holds the inputs, takes the outputs.
        outputs: folder that stands at OUTPUTS_MOUNT; takes the output parameters.
    """

    name: str
    image: str
    command: list[str]
    variables: dict[str, str]
    artifacts: Path
    outputs: Path


@dataclass
class _Outputs:
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cluster:
    """What stands around the pipeline.

    Attributes:
        start: runs a step to its end and raises if it fails.
        store: S3 prefix that takes the artifacts.
        sources: values of secrets and config maps, by ``name/key``; and pod fields, by their path.
        work: scratch folder.
        run: name of the run.
    """

    start: Callable[[Step], None]
    store: Store
    sources: Mapping[str, str]
    work: Path
    run: str
    done: dict[str, _Outputs] = field(default_factory=dict)


def run_pipeline(path: Path, cluster: Cluster, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run a compiled pipeline to its end.

    Args:
        path: The IR, with the platform's part as its second document.
        cluster: What stands around it.
        parameters: In place of the pipeline's defaults.

    Returns:
        The output parameters of every task that ran, by the task's name.
    """
    documents = list(yaml.safe_load_all(path.read_text()))
    spec, platform = documents[0], documents[1] if len(documents) > 1 else {}
    executors = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    defined = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    inputs = {name: one["defaultValue"] for name, one in defined.items() if "defaultValue" in one}
    inputs |= dict(parameters or {})
    _Dag(spec, executors, cluster).run(spec["root"]["dag"], inputs, {}, "")
    return {name: outputs.parameters for name, outputs in cluster.done.items()}


@dataclass
class _Dag:
    spec: dict[str, Any]
    platform: dict[str, Any]
    cluster: Cluster

    def run(self, dag: dict[str, Any], parameters: dict[str, Any], artifacts: dict[str, Any], path: str) -> _Outputs:
        done: dict[str, _Outputs] = {}
        skipped: set[str] = set()
        waiting = dict(dag["tasks"])
        failure: Exception | None = None
        while waiting:
            ready = [name for name, task in waiting.items() if not set(task.get("dependentTasks", [])) & set(waiting)]
            name = ready[0]
            task = waiting.pop(name)
            last = task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
            if failure is not None and not last:
                continue
            given, handed = self.inputs(task, parameters, artifacts, done, failure)
            if not self.wanted(task, given):
                skipped.add(name)
                continue
            component = self.spec["components"][task["componentRef"]["name"]]
            try:
                if "dag" in component:
                    done[name] = self.run(component["dag"], given, handed, f"{path}{name}/")
                else:
                    done[name] = self.execute(name, component, given, handed)
            except Exception as error:  # the exit task still runs
                failure = failure or error
        if failure is not None:
            raise failure
        return self.results(dag, done, skipped)

    def inputs(
        self,
        task: dict[str, Any],
        parameters: dict[str, Any],
        artifacts: dict[str, Any],
        done: dict[str, _Outputs],
        failure: Exception | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        wanted = task.get("inputs", {})
        given: dict[str, Any] = {}
        for name, source in wanted.get("parameters", {}).items():
            if "componentInputParameter" in source:
                given[name] = parameters[source["componentInputParameter"]]
            elif "taskOutputParameter" in source:
                producer = source["taskOutputParameter"]
                given[name] = done[producer["producerTask"]].parameters[producer["outputParameterKey"]]
            elif "taskFinalStatus" in source:
                state = "FAILED" if failure else "SUCCEEDED"
                error = {"message": str(failure)} if failure else {}
                given[name] = {"state": state, "error": error, "pipelineTaskName": "pipeline"}
            else:
                given[name] = source["runtimeValue"]["constant"]
        filled = {name: self.fill(value, given) for name, value in given.items()}
        handed: dict[str, Any] = {}
        for name, source in wanted.get("artifacts", {}).items():
            if "componentInputArtifact" in source:
                handed[name] = artifacts[source["componentInputArtifact"]]
            else:
                producer = source["taskOutputArtifact"]
                handed[name] = done[producer["producerTask"]].artifacts[producer["outputArtifactKey"]]
        return filled, handed

    def fill(self, value: Any, given: dict[str, Any]) -> Any:
        if isinstance(value, list):
            return [self.fill(one, given) for one in value]
        if isinstance(value, dict):
            return {key: self.fill(one, given) for key, one in value.items()}
        if isinstance(value, float) and value.is_integer():
            return int(value)  # the IR's numbers are all floating-point; KFP writes whole ones without a point
        if not isinstance(value, str):
            return value
        filled = PLACEHOLDER.sub(lambda match: _text(given[match[1]]), value)
        names = ("pipeline_job_name", "pipeline_job_resource_name", "pipeline_job_uuid")
        for name in names:
            filled = filled.replace("{{$." + name + "}}", self.cluster.run)
        return filled

    def wanted(self, task: dict[str, Any], given: dict[str, Any]) -> bool:
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is None:
            return True
        parts = []
        for part in condition.split(" && "):
            match = CONDITION.match(part.strip())
            assert match is not None, f"condition {part!r} is not one of those that the pipelines here have"
            parts.append((given[match[2]] is (match[3] == "true")) is not bool(match[1]))
        return all(parts)

    def results(self, dag: dict[str, Any], done: dict[str, _Outputs], skipped: set[str]) -> _Outputs:
        results = _Outputs()
        outputs = dag.get("outputs", {})
        for name, source in outputs.get("parameters", {}).items():
            selectors = source.get("valueFromOneof", {}).get("parameterSelectors") or [source["valueFromParameter"]]
            for one in selectors:
                if one["producerSubtask"] not in skipped:
                    results.parameters[name] = done[one["producerSubtask"]].parameters[one["outputParameterKey"]]
        for name, source in outputs.get("artifacts", {}).items():
            for one in source["artifactSelectors"]:
                if one["producerSubtask"] not in skipped:
                    results.artifacts[name] = done[one["producerSubtask"]].artifacts[one["outputArtifactKey"]]
        return results

    def execute(
        self, name: str, component: dict[str, Any], parameters: dict[str, Any], artifacts: dict[str, Any]
    ) -> _Outputs:
        cluster, container = self.cluster, self.spec["deploymentSpec"]["executors"][component["executorLabel"]]
        step_folder = cluster.work / name
        folder, outputs = step_folder / "s3", step_folder / "kfp"
        for one in (folder, outputs):
            shutil.rmtree(one, ignore_errors=True)
            one.mkdir(parents=True)
        for artifact in artifacts.values():
            _fetch(cluster.store, artifact["artifacts"][0]["uri"], folder)
        defined = component.get("inputDefinitions", {}).get("parameters", {})
        defaults = {key: one["defaultValue"] for key, one in defined.items() if "defaultValue" in one}
        request = _request(
            component, {**defaults, **parameters}, artifacts, f"{cluster.store.uri}/{cluster.run}/{name}"
        )
        spec = container["container"]
        arguments = [one.replace("{{$}}", json.dumps(request)) for one in spec.get("args", [])]
        variables = {one["name"]: one["value"] for one in spec.get("env", [])}
        variables |= self.from_cluster(component["executorLabel"])
        cluster.start(Step(name, spec["image"], [*spec["command"], *arguments], variables, folder, outputs))
        cluster.done[name] = done = _read(request, outputs)
        for artifact in done.artifacts.values():
            _publish(cluster.store, artifact["artifacts"][0]["uri"], folder)
        shutil.rmtree(step_folder)
        return done

    def from_cluster(self, executor: str) -> dict[str, str]:
        platform = self.platform.get(executor, {})
        found: dict[str, str] = {}
        for kind, label, key in (
            ("secretAsEnv", "secretName", "secretKey"),
            ("configMapAsEnv", "configMapName", "configMapKey"),
        ):
            for source in platform.get(kind, []):
                for one in source["keyToEnv"]:
                    name = f"{source[label]}/{one[key]}"
                    if name in self.cluster.sources or not source.get("optional"):
                        found[one["envVar"]] = self.cluster.sources[name]
        for one in platform.get("fieldPathAsEnv", []):
            found[one["name"]] = self.cluster.sources[one["fieldPath"]]
        return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _request(
    component: dict[str, Any], parameters: dict[str, Any], artifacts: dict[str, Any], place: str
) -> dict[str, Any]:
    """The executor input of a task, as KFP's launcher words it."""
    defined = component.get("outputDefinitions", {})
    made = {
        name: {
            "artifacts": [
                {
                    "name": name,
                    "type": one["artifactType"],
                    "uri": f"{place}/{name}",
                    "metadata": one.get("metadata", {}),
                }
            ]
        }
        for name, one in defined.get("artifacts", {}).items()
    }
    files = {name: {"outputFile": f"{OUTPUTS_MOUNT}/{name}"} for name in defined.get("parameters", {})}
    return {
        "inputs": {"parameterValues": parameters, "artifacts": artifacts},
        "outputs": {"parameters": files, "artifacts": made, "outputFile": f"{OUTPUTS_MOUNT}/executor_output.json"},
    }


def _read(request: dict[str, Any], outputs: Path) -> _Outputs:
    """What a task has handed back, in its files and in its executor output."""
    written = outputs / "executor_output.json"
    answer = json.loads(written.read_text()) if written.exists() else {}
    done = _Outputs(parameters=dict(answer.get("parameterValues", {})), artifacts=dict(request["outputs"]["artifacts"]))
    done.artifacts.update(answer.get("artifacts", {}))
    for name in request["outputs"]["parameters"]:
        if name not in done.parameters:
            done.parameters[name] = (outputs / name).read_text()
    return done


def _local(uri: str, folder: Path) -> Path:
    return folder / uri.removeprefix("s3://")


def _publish(store: Store, uri: str, folder: Path) -> None:
    """Upload a file or a folder that a task left at an artifact's address; a task need not write one."""
    source, key = _local(uri, folder), uri.removeprefix(f"{store.uri}/")
    for file in [source] if source.is_file() else [one for one in source.rglob("*") if one.is_file()]:
        store.put(key if file == source else f"{key}/{file.relative_to(source)}", file.read_bytes())


def _fetch(store: Store, uri: str, folder: Path) -> None:
    prefix = uri.removeprefix(f"{store.uri}/")
    for key in store.keys(prefix):
        if key == prefix or key.startswith(f"{prefix}/"):
            target = _local(f"{store.uri}/{key}", folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.get(key))
