"""The reader of compiled pipelines hands each step what KFP's driver and launcher would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl, kubernetes

from mlites.storage import Store
from tests.docker.compiled import OUTPUTS_MOUNT, Cluster, Step, run_pipeline

IMAGE = "mlites/test:1"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def make(rows: int, share: float, data: dsl.Output[dsl.Dataset]) -> bool:
    return rows > 0


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def use(names: list, options: dict, data: dsl.Input[dsl.Dataset]) -> str:  # type: ignore[type-arg]
    return ""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def skip() -> str:
    return ""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tell(word: str, job: str) -> None:
    pass


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def close(status: dsl.PipelineTaskFinalStatus) -> None:
    pass


@dsl.pipeline(name="all-there-is")
def pipeline(rows: int = 3) -> None:
    with dsl.ExitHandler(close()):
        made = make(rows=rows, share=0.5)
        made.set_env_variable("KIND", "made")
        kubernetes.use_secret_as_env(made, "keys", {"id": "KEY_ID"})
        kubernetes.use_config_map_as_env(made, "places", {"s3": "ENDPOINT"})
        kubernetes.use_field_path_as_env(made, "RUN", "metadata.labels['run']")
        kubernetes.use_secret_as_env(made, "hooks", {"url": "HOOK"}, optional=True)
        with dsl.If(made.outputs["Output"] == True, name="yes"):  # noqa: E712 a condition of KFP
            used = use(names=["a", "b"], options={"n": 1, "x": 0.5}, data=made.outputs["data"])
        with dsl.Else(name="no"):
            skipped = skip()
        tell(word=dsl.OneOf(used.output, skipped.output), job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)


class Containers:
    """Stands for podman: notes each step, and writes what the step's program would."""

    def __init__(self, programs: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]]) -> None:
        self.programs = programs
        self.steps: dict[str, Step] = {}
        self.given: dict[str, dict[str, Any]] = {}

    def __call__(self, step: Step) -> None:
        request = json.loads(step.command[step.command.index("--executor_input") + 1])
        self.steps[step.name] = step
        self.given[step.name] = request["inputs"]["parameterValues"]
        values = self.programs.get(step.name, lambda request, folder: {})(request, step.artifacts)
        target = step.outputs / Path(request["outputs"]["outputFile"]).relative_to(OUTPUTS_MOUNT)
        target.write_text(json.dumps({"parameterValues": values}))


def write_data(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `make` does."""
    place = folder / request["outputs"]["artifacts"]["data"]["artifacts"][0]["uri"].removeprefix("s3://")
    place.mkdir(parents=True)
    (place / "rows.txt").write_text("1 2 3")
    return {"Output": request["inputs"]["parameterValues"]["rows"] > 0}


def read_data(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `use` does."""
    place = folder / request["inputs"]["artifacts"]["data"]["artifacts"][0]["uri"].removeprefix("s3://")
    return {"Output": (place / "rows.txt").read_text()}


PROGRAMS = {"make": write_data, "use": read_data, "skip": lambda request, folder: {"Output": "skipped"}}


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """The IR of the pipeline above."""
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return path


def cluster(containers: Containers, store: Store, work: Path) -> Cluster:
    """What stands around it."""
    sources = {"keys/id": "AK", "places/s3": "http://s3", "metadata.labels['run']": "r1"}
    return Cluster(containers, store, sources, work, "run-1")


def test_steps_get_inputs_artifacts_and_variables(compiled: Path, store: Store, tmp_path: Path) -> None:
    containers = Containers(PROGRAMS)
    outputs = run_pipeline(compiled, cluster(containers, store, tmp_path / "work"))
    assert list(containers.steps) == ["make", "use", "tell", "close"]
    assert containers.given["make"] == {"rows": 3, "share": 0.5}
    assert isinstance(containers.given["make"]["rows"], int)
    assert containers.given["use"] == {"names": ["a", "b"], "options": {"n": 1, "x": 0.5}}
    assert containers.given["tell"] == {"word": "1 2 3", "job": "run-1"}
    assert containers.given["close"]["status"]["state"] == "SUCCEEDED"
    assert containers.steps["make"].variables == {"KIND": "made", "KEY_ID": "AK", "ENDPOINT": "http://s3", "RUN": "r1"}
    assert containers.steps["make"].image == IMAGE
    assert outputs["use"] == {"Output": "1 2 3"}
    assert not list((tmp_path / "work").iterdir()), "artifacts live in the store alone"


def test_the_branch_that_is_not_taken_does_not_run(compiled: Path, store: Store, tmp_path: Path) -> None:
    containers = Containers(PROGRAMS)
    run_pipeline(compiled, cluster(containers, store, tmp_path / "work"), {"rows": 0})
    assert list(containers.steps) == ["make", "skip", "tell", "close"]
    assert containers.given["tell"]["word"] == "skipped"


def test_the_exit_task_runs_and_hears_of_a_failure(compiled: Path, store: Store, tmp_path: Path) -> None:
    def fail(request: dict[str, Any], folder: Path) -> dict[str, Any]:
        raise RuntimeError("no room")

    containers = Containers({**PROGRAMS, "use": fail})
    with pytest.raises(RuntimeError, match="no room"):
        run_pipeline(compiled, cluster(containers, store, tmp_path / "work"))
    assert list(containers.steps) == ["make", "use", "close"]
    status = containers.given["close"]["status"]
    assert (status["state"], status["error"]) == ("FAILED", {"message": "no room"})
