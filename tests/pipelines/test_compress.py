"""The compiled pipeline: same bytes twice, loads with KFP, shares steps, holds no secret."""

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import yaml
from kfp import components

from mlites.errors import InputError
from mlites.recipe import load_recipe
from pipelines.cluster.audit import audit
from pipelines.compress import build_pipeline, compile_pipeline
from pipelines.lint import lint
from tests.pipelines.golden import GOLDEN, render

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "digits.yaml"


class Compiled:
    """A compiled pipeline, by the names of its tasks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec, platform = [*yaml.load_all(path.read_text(), LOADER), {}][:2]
        executors = self.spec["deploymentSpec"]["executors"]
        self.containers = {name.removeprefix("exec-"): one["container"] for name, one in executors.items()}
        platforms = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
        self.kubernetes = {name.removeprefix("exec-"): one for name, one in platforms.items()}
        self.tasks: dict[str, Any] = {}
        for component in [self.spec["root"], *self.spec["components"].values()]:
            for name, task in component.get("dag", {}).get("tasks", {}).items():
                if "executorLabel" in self.spec["components"][task["componentRef"]["name"]]:
                    self.tasks[name] = task


def _compile(path: Path, *overrides: str, local: bool = False) -> Compiled:
    environment = {"MLITES_CODE": "c0de", "MLITES_STORE_ID": "5703e"}
    recipe = load_recipe(RECIPE, list(overrides))
    compile_pipeline(build_pipeline(recipe, environment=environment, local=local), path)
    return Compiled(path)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The digits recipe for a cluster."""
    return _compile(tmp_path_factory.mktemp("cluster") / "digits.yaml")


def test_compiling_twice_gives_identical_bytes_that_kfp_loads(cluster: Compiled, tmp_path: Path) -> None:
    _compile(tmp_path / "two.yaml")
    assert (tmp_path / "two.yaml").read_bytes() == cluster.path.read_bytes()
    loaded = components.load_component_from_file(str(tmp_path / "two.yaml"))
    assert loaded.name == "mlites-digits"
    assert [path.name for path in tmp_path.iterdir()] == ["two.yaml"]


def test_the_local_pipeline_passes_the_lint(tmp_path: Path) -> None:
    assert lint(_compile(tmp_path / "local.yaml", local=True).spec) == []


def test_scheduling_parameters_stay_parameters_of_the_pipeline(cluster: Compiled) -> None:
    inputs = cluster.spec["root"]["inputDefinitions"]["parameters"]
    assert {"data_path", "reference_path", "teacher_path", "seed", "budget", "store", "run"} <= set(inputs)
    assert all("defaultValue" in one for one in inputs.values())
    assert inputs["budget"]["defaultValue"]["accuracy_drop_points"] == 2.0


def test_every_candidate_is_validated_and_prefixes_are_shared(cluster: Compiled) -> None:
    recipe = load_recipe(RECIPE)
    assert {f"validate-{one.name}" for one in recipe.candidates} <= set(cluster.tasks)
    passes = sum(len(one.passes) for one in recipe.candidates)
    made = [name for name in cluster.tasks if name.split("-")[0] in ("distill", "prune", "quantize")]
    assert len(made) < passes


def test_results_in_the_store_are_bound_to_that_store_and_others_are_not(cluster: Compiled) -> None:
    bound = {
        name.split("-")[0]
        for name, one in cluster.containers.items()
        if any(variable["name"] == "MLITES_STORE_ID" for variable in one["env"])
    }
    assert bound == {"validate", "select", "gate", "sweep"}
    assert all({"name": "MLITES_CODE", "value": "c0de"} in one["env"] for one in cluster.containers.values())


def test_settings_are_found_before_deployment_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    swept, plain = _compile(tmp_path / "with.yaml"), _compile(tmp_path / "without.yaml", "serving={}")
    found = swept.tasks["deploy"]["inputs"]["parameters"]["settings"]["taskOutputParameter"]
    assert found["producerTask"] == "sweep" and "sweep" in swept.tasks
    assert plain.tasks["deploy"]["inputs"]["parameters"]["settings"]["runtimeValue"]["constant"] == ""
    assert "sweep" not in plain.tasks


def test_only_a_candidates_steps_may_fail_without_ending_the_run(cluster: Compiled) -> None:
    words = {
        name: {one["name"]: one["value"] for one in container["env"]} for name, container in cluster.containers.items()
    }
    told = {name: found["MLITES_CANDIDATE_STEP"] for name, found in words.items() if "MLITES_CANDIDATE_STEP" in found}
    assert {name.split("-")[0] for name in told} == {"distill", "prune", "export", "quantize"}
    (teachers_own,) = {name for name in words if name.startswith("export")} - set(told)
    assert teachers_own.startswith("export-")
    assert all(text and not text.startswith("teacher") for text in told.values())


def test_every_task_has_a_time_limit_further_tries_resources_and_the_fixed_user(cluster: Compiled) -> None:
    assert set(cluster.tasks) == set(cluster.containers) == set(cluster.kubernetes) >= {"check-inputs", "notify"}
    for name, task in cluster.tasks.items():
        policy, kubernetes = task["retryPolicy"], cluster.kubernetes[name]
        assert policy["maxRetryCount"] >= 2 and policy["backoffDuration"] == "30s" and policy["backoffFactor"] == 2
        assert 0 < int(kubernetes["activeDeadlineSeconds"]) <= 12 * 3600
        user = kubernetes["securityContext"]
        assert user == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
        assert kubernetes["emptyDirMounts"][0]["mountPath"] == "/tmp"
        resources = cluster.containers[name]["resources"]
        assert resources["resourceCpuLimit"] == resources["resourceCpuRequest"]
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]


def test_the_recipe_sets_what_each_kind_of_task_may_take(cluster: Compiled, tmp_path: Path) -> None:
    changed = _compile(
        tmp_path / "p.yaml",
        "cluster.train={cpu: 8, gpu: 2, timeout_minutes: 90, retries: 5}",
        "cluster.retry_seconds=5",
        "cluster.queue=batch",
        "cluster.priority_class=low",
    )
    teacher = changed.containers["train-teacher"]
    assert teacher["resources"]["resourceCpuLimit"] == "8"
    assert teacher["resources"]["accelerator"]["resourceCount"] == "2"
    assert {"name": "OMP_NUM_THREADS", "value": "8"} in teacher["env"]
    assert changed.tasks["train-teacher"]["retryPolicy"]["maxRetryCount"] == 5
    assert changed.tasks["train-teacher"]["retryPolicy"]["backoffDuration"] == "5s"
    assert int(changed.kubernetes["train-teacher"]["activeDeadlineSeconds"]) == 90 * 60
    labels = {"kueue.x-k8s.io/queue-name": "batch", "kueue.x-k8s.io/priority-class": "low"}
    assert all(one["podMetadata"]["labels"] == labels for one in changed.kubernetes.values())
    assert changed.containers["gate"] == cluster.containers["gate"]  # other kinds stay


def test_secrets_are_named_and_their_values_stand_nowhere(cluster: Compiled) -> None:
    for name, one in cluster.kubernetes.items():
        names = {secret["secretName"]: secret for secret in one["secretAsEnv"]}
        assert set(names) == ({"mlites-s3", "mlites-notify"} if name == "notify" else {"mlites-s3"})
        variables = {entry["envVar"] for entry in names["mlites-s3"]["keyToEnv"]}
        assert variables == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        servers = {entry["envVar"] for entry in one["configMapAsEnv"][0]["keyToEnv"]}
        assert ("MLITES_TRITON_URL" in servers) == (name in ("deploy", "sweep")) and "MLITES_S3_ENDPOINT" in servers
    assert cluster.kubernetes["notify"]["secretAsEnv"][1]["optional"] is True


def test_the_last_task_runs_whatever_became_of_the_others(cluster: Compiled) -> None:
    last = cluster.spec["root"]["dag"]["tasks"]["notify"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert last["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_nothing_runs_before_the_inputs_are_looked_up_and_found_changed(cluster: Compiled) -> None:
    (inside,) = [one["dag"]["tasks"] for name, one in cluster.spec["components"].items() if "exit-handler" in name]
    (rest,) = set(inside) - {"check-inputs"}
    assert inside[rest]["dependentTasks"] == ["check-inputs"]
    assert inside[rest]["triggerPolicy"]["condition"].endswith("check-inputs-Output'] == true")
    digest = cluster.tasks["prepare-data"]["inputs"]["parameters"]["digest"]
    assert digest == {"componentInputParameter": "pipelinechannel--check-inputs-data_digest"}


def test_the_clusters_pipeline_passes_the_lint_and_the_audit(cluster: Compiled) -> None:
    assert lint(cluster.spec) == [] and audit(cluster.path) == []


def test_at_most_so_many_candidates_tasks_can_run_at_once(tmp_path: Path) -> None:
    tasks = _compile(tmp_path / "p.yaml", "cluster.parallelism=3").tasks
    fan = {name for name in tasks if name.split("-")[0] in ("distill", "prune", "export", "quantize", "validate")}
    needs = {name: set(tasks[name].get("dependentTasks", [])) & fan for name in fan}

    def before(name: str) -> set[str]:
        return needs[name].union(*(before(one) for one in needs[name]))

    all_before = {name: before(name) for name in fan}
    unordered = nx.Graph()
    unordered.add_nodes_from(fan)
    unordered.add_edges_from(
        (one, other) for one in fan for other in fan if one not in all_before[other] and other not in all_before[one]
    )
    unordered.remove_edges_from(list(nx.selfloop_edges(unordered)))
    assert max(len(clique) for clique in nx.find_cliques(unordered)) == 3


def test_the_compiled_digits_pipeline_is_the_one_that_was_reviewed(cluster: Compiled) -> None:
    """The golden file holds the wiring; after a wanted change: python -m tests.pipelines.golden."""
    assert render(cluster.path) == GOLDEN.read_text()


def test_the_profile_places_the_validation_on_its_kind_of_node(cluster: Compiled, tmp_path: Path) -> None:
    node = "hardware.cluster.node_selector={board: edge}"
    placed = _compile(tmp_path / "p.yaml", "hardware=edge-arm-class", node)
    for name, one in placed.containers.items():
        if name.startswith("validate-"):
            assert one["resources"]["resourceCpuLimit"] == one["resources"]["resourceCpuRequest"] == "1"
            assert one["resources"]["resourceMemoryLimit"] == one["resources"]["resourceMemoryRequest"] == "2560Mi"
            assert placed.kubernetes[name]["nodeSelector"]["labels"] == {"board": "edge"}
        else:
            assert "nodeSelector" not in placed.kubernetes[name]
            assert one == cluster.containers.get(name, one)  # a profile renames the steps that it changes


def test_a_gpu_profile_asks_for_one_and_tolerates_its_nodes(tmp_path: Path) -> None:
    placed = _compile(tmp_path / "p.yaml", "hardware=gpu")
    name = next(name for name in placed.containers if name.startswith("validate-"))
    assert placed.containers[name]["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    (toleration,) = placed.kubernetes[name]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_a_pipeline_for_this_machine_has_nothing_of_a_cluster(tmp_path: Path) -> None:
    cluster = "cluster={parallelism: 1, queue: batch}"
    here = _compile(tmp_path / "here.yaml", "hardware=edge-arm-class", cluster, local=True)
    assert not any("resources" in one for one in here.containers.values())
    assert here.kubernetes == {} and not {"check-inputs", "notify"} & set(here.tasks)
    assert not any("retryPolicy" in one for one in here.tasks.values())


def test_tasks_that_train_keep_checkpoints_in_the_store_and_several_workers_get_pods_of_their_own(
    cluster: Compiled, tmp_path: Path
) -> None:
    kept = {name for name, one in cluster.containers.items() if "MLITES_CHECKPOINTS" in str(one["env"])}
    assert {name.split("-")[0] for name in kept} == {"train", "distill", "prune"}
    wide = ["teacher.workers=2", "cluster.train={cpu: 4, gpu: 1, memory_mib: 8192, timeout_minutes: 90}"]
    variables = {
        one["name"]: one["value"] for one in _compile(tmp_path / "p.yaml", *wide).containers["train-teacher"]["env"]
    }
    job = json.loads(variables["MLITES_TRAIN_JOB"])
    assert job["image"] == cluster.containers["train-teacher"]["image"]
    assert (job["cpu"], job["memory"], job["gpus"], job["seconds"]) == ("4", "8192Mi", 1, 5400)
    with pytest.raises(InputError, match=r"cluster\.train\.gpu is 2, but each of a teacher's workers takes one"):
        _compile(tmp_path / "p.yaml", "teacher.workers=2", "cluster.train.gpu=2")
