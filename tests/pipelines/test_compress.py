"""The compiled pipeline: same bytes twice, loads with KFP, shares steps, holds no secret."""

from pathlib import Path
from typing import Any

import yaml
from kfp import components

from mlites.recipe import load_recipe
from pipelines.compress import build_pipeline, compile_pipeline
from pipelines.lint import lint

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "digits.yaml"


def _compile(path: Path, *overrides: str, local: bool = False) -> dict[str, Any]:
    environment = {"MLITES_CODE": "c0de", "MLITES_STORE_ID": "5703e"}
    recipe = load_recipe(RECIPE, list(overrides))
    compile_pipeline(build_pipeline(recipe, environment=environment, local=local), path)
    spec: dict[str, Any] = next(yaml.safe_load_all(path.read_text()))
    return spec


def test_compiling_twice_gives_identical_bytes_that_kfp_loads(tmp_path: Path) -> None:
    _compile(tmp_path / "one.yaml")
    _compile(tmp_path / "two.yaml")
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()
    loaded = components.load_component_from_file(str(tmp_path / "one.yaml"))
    assert loaded.name == "mlites-digits"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.yaml", "two.yaml"]


def test_the_local_pipeline_passes_the_lint(tmp_path: Path) -> None:
    assert lint(_compile(tmp_path / "local.yaml", local=True)) == []


def test_scheduling_parameters_stay_parameters_of_the_pipeline(tmp_path: Path) -> None:
    inputs = _compile(tmp_path / "p.yaml")["root"]["inputDefinitions"]["parameters"]
    assert {"data_path", "data_digest", "seed", "budget", "store", "run"} <= set(inputs)
    assert inputs["budget"]["defaultValue"]["accuracy_drop_points"] == 2.0


def test_every_candidate_is_validated_and_prefixes_are_shared(tmp_path: Path) -> None:
    tasks = _compile(tmp_path / "p.yaml")["root"]["dag"]["tasks"]
    recipe = load_recipe(RECIPE)
    assert {f"validate-{one.name}" for one in recipe.candidates} <= set(tasks)
    passes = sum(len(one.passes) for one in recipe.candidates)
    made = [name for name in tasks if name.split("-")[0] in ("distill", "prune", "quantize")]
    assert len(made) < passes


def test_results_in_the_store_are_bound_to_that_store_and_others_are_not(tmp_path: Path) -> None:
    executors = _compile(tmp_path / "p.yaml")["deploymentSpec"]["executors"]
    bound = {
        name.removeprefix("exec-").split("-")[0]
        for name, one in executors.items()
        if any(variable["name"] == "MLITES_STORE_ID" for variable in one["container"]["env"])
    }
    assert bound == {"validate", "select", "gate", "sweep"}
    assert all({"name": "MLITES_CODE", "value": "c0de"} in one["container"]["env"] for one in executors.values())


def test_settings_are_found_before_deployment_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    found = []
    for name, override in (("with.yaml", "seed=0"), ("without.yaml", "serving={}")):
        parts = _compile(tmp_path / name, override)["components"].values()
        tasks = next(one["dag"]["tasks"] for one in parts if "deploy" in one.get("dag", {}).get("tasks", {}))
        found.append((tasks, tasks["deploy"]["inputs"]["parameters"]["settings"]))
    (swept, from_sweep), (plain, none) = found
    assert from_sweep["taskOutputParameter"]["producerTask"] == "sweep" and "sweep" in swept
    assert none["runtimeValue"]["constant"] == "" and "sweep" not in plain


def test_in_a_cluster_credentials_come_from_a_secret_by_name(tmp_path: Path) -> None:
    _compile(tmp_path / "p.yaml")
    _, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert "exec-deploy" in executors and "exec-export-" not in str(list(executors))
    (secret,) = executors["exec-deploy"]["secretAsEnv"]
    assert secret["secretName"] == "mlites-s3"
    assert {entry["envVar"] for entry in secret["keyToEnv"]} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    (servers,) = executors["exec-deploy"]["configMapAsEnv"]
    assert {entry["envVar"] for entry in servers["keyToEnv"]} >= {"MLITES_S3_ENDPOINT", "MLITES_TRITON_URL"}


def test_only_a_candidates_steps_may_fail_without_ending_the_run(tmp_path: Path) -> None:
    executors = _compile(tmp_path / "p.yaml")["deploymentSpec"]["executors"]
    words = {
        name.removeprefix("exec-"): {one["name"]: one["value"] for one in executor["container"]["env"]}
        for name, executor in executors.items()
    }
    told = {name: found["MLITES_CANDIDATE_STEP"] for name, found in words.items() if "MLITES_CANDIDATE_STEP" in found}
    assert {name.split("-")[0] for name in told} == {"distill", "prune", "export", "quantize"}
    (teachers_own,) = {name for name in words if name.startswith("export")} - set(told)
    assert teachers_own.startswith("export-")
    assert all(text and not text.startswith("teacher") for text in told.values())


def test_the_profile_places_the_validation_on_its_kind_of_node(tmp_path: Path) -> None:
    cluster = "hardware.cluster.node_selector={board: edge}"
    executors = _compile(tmp_path / "p.yaml", "hardware=edge-arm-class", cluster)["deploymentSpec"]["executors"]
    _, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    nodes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, one in executors.items():
        limits = one["container"].get("resources", {})
        if name.startswith("exec-validate-"):
            assert limits["resourceCpuLimit"] == limits["resourceCpuRequest"] == "1"
            assert limits["resourceMemoryLimit"] == limits["resourceMemoryRequest"] == "2560Mi"
            assert nodes[name]["nodeSelector"]["labels"] == {"board": "edge"}
        else:
            assert limits == {} and "nodeSelector" not in nodes.get(name, {})


def test_a_gpu_profile_asks_for_one_and_tolerates_its_nodes(tmp_path: Path) -> None:
    executors = _compile(tmp_path / "p.yaml", "hardware=gpu")["deploymentSpec"]["executors"]
    _, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    name = next(name for name in executors if name.startswith("exec-validate-"))
    assert executors[name]["container"]["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    (toleration,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][name]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_a_pipeline_for_this_machine_places_nothing(tmp_path: Path) -> None:
    executors = _compile(tmp_path / "p.yaml", "hardware=edge-arm-class", local=True)["deploymentSpec"]["executors"]
    assert not any("resources" in one["container"] for one in executors.values())
