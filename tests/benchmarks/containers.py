"""The pipeline of a recipe, step by step in its containers, against the real servers, and the same locally.

    python -m tests.benchmarks.containers [--recipe digits] [--set KEY=VALUE]...

Wants podman and the images of docker/build.py. The compiled pipeline decides what runs: each task's image, command line
and variables come from the IR, artifacts cross S3 between tasks, and every container runs without privileges, with a
read-only root file system and the image's own user. Then `mlites run` does the same on this machine. Exits 1 unless
both select the same candidate, their models agree, and Triton serves the one that the containers deployed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlites import stack
from mlites.serving.sandbox import sandbox
from mlites.serving.server import Triton
from mlites.storage import Store
from tests.docker.compiled import OUTPUTS_MOUNT, S3_MOUNT, Cluster, Step, run_pipeline

MLITES = str(Path(sys.executable).with_name("mlites"))
MANIFESTS = Path(__file__).parents[2] / "manifests"
USER = 1000
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums of floats depend on how many threads share them


def start_container(step: Step) -> None:
    """Run a step as pod-security "restricted" would let it, and with a read-only root file system besides."""
    begin = time.monotonic()
    for folder in (step.artifacts, step.outputs):
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, USER, USER)
    variables = {**step.variables, **ONE_THREAD}
    command = ["podman", "run", "--rm", "--pull", "never", "--network", "host", "--read-only", "--cap-drop", "all"]
    command += ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp:rw,mode=1777,size=4g"]
    command += ["-v", f"{step.artifacts}:{S3_MOUNT}", "-v", f"{step.outputs}:{OUTPUTS_MOUNT}"]
    for name in variables:
        command += ["--env", name]  # values stay out of the process list
    done = subprocess.run(
        [*command, step.image, *step.command], env={**os.environ, **variables}, capture_output=True, text=True
    )
    print(f"{step.name:24} {step.image:28} {time.monotonic() - begin:6.1f} s  exit {done.returncode}", flush=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        raise RuntimeError(f"{step.name} failed in its container")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder to work in, with the embedded servers; all gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mlites-containers-"))
    os.environ["MLITES_HOME"] = str(folder / "home")
    try:
        os.environ.update(stack.up(lambda line: print(line, flush=True)))
        os.environ["MLITES_TRITON_REPLICAS"] = os.environ["MLITES_TRITON_URL"].removeprefix("http://")
        with sandbox() as apart:
            os.environ.update(MLITES_SANDBOX_URL=apart.triton.url, MLITES_SANDBOX_GRPC=apart.triton.grpc)
            yield folder
    finally:
        stack.down()
        shutil.rmtree(folder, ignore_errors=True)


def in_containers(recipe: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Compile, run every task in its container, and read the summary that the report step published."""
    store = Store.open(os.environ["MLITES_STORE"])
    compiled = folder / "pipeline.yaml"
    subprocess.run([MLITES, "compile", recipe, *overrides, "-o", str(compiled)], check=True)
    cluster = Cluster(
        start_container, Store.open(f"{store.uri}/kfp"), cluster_objects(os.environ), folder / "work", "containers"
    )
    run_pipeline(compiled, cluster, {"store": store.uri, "run": "containers"})
    summary: dict[str, Any] = json.loads(store.get("runs/containers/summary.json"))
    return summary


def cluster_objects(environment: Mapping[str, str]) -> dict[str, str]:
    """What the secret and the config map of the manifests hold in a cluster."""
    secret = {f"mlites-s3/{key}": environment[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    config = yaml.safe_load((MANIFESTS / "local" / "steps" / "servers.yaml").read_text())
    servers = {f"mlites-servers/{key}": environment[key] for key in config["data"]}
    return {**secret, **servers, "metadata.labels['pipeline/runid']": "containers"}


def on_this_machine(recipe: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """The same recipe through the local runner, with the same servers."""
    done = subprocess.run(
        [MLITES, "run", recipe, *overrides], cwd=folder, env={**os.environ, **ONE_THREAD}, check=False
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"the local run failed with exit code {done.returncode}")
    summary: dict[str, Any] = json.loads((folder / "runs" / "latest" / "summary.json").read_text())
    return summary


def model_files(summary: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each candidate's model.onnx, as the store has it."""
    store = Store.open(os.environ["MLITES_STORE"])
    cards = {one["name"]: json.loads(store.get(f"models/{one['model']}/model.json")) for one in summary["candidates"]}
    return {name: card["files"]["model.onnx"] for name, card in cards.items()}


def compare(containers: dict[str, Any], local: dict[str, Any]) -> list[str]:
    """What is not the same, in words; empty if all is."""
    faults = []
    ours, theirs = model_files(containers), model_files(local)
    accuracies = {one["name"]: one["accuracy"] for one in local["candidates"]}
    print(f"\n{'candidate':16} {'containers':>10} {'local':>10}  model.onnx")
    for one in containers["candidates"]:
        name = one["name"]
        same = ours[name] == theirs[name]
        print(f"{name:16} {one['accuracy']:10.2%} {accuracies[name]:10.2%}  {'same bytes' if same else 'DIFFERS'}")
        if not same:
            faults.append(f"{name}: model.onnx is not the one of the local run")
    print(f"selected: {containers['selected']} in containers, {local['selected']} locally")
    if containers["selected"] != local["selected"]:
        faults.append(f"selected {containers['selected']} in containers, {local['selected']} locally")
    return faults


def served(summary: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Whether Triton serves the selected model, as the deploy step's document says."""
    deployment = summary["deployment"]
    if summary["status"] != "deployed":
        return [f"the containers' run ended {summary['status']}: {summary['reason']}"]
    if deployment["sha256"] != files[summary["selected"]]:
        return ["the deployed model is not the selected one"]
    Triton.from_environment().wait_until_ready(deployment["model"], deployment["version"])
    print(f"Triton serves version {deployment['version']} of {deployment['model']}: {deployment['sha256'][:12]}")
    return []


def main() -> None:
    """Run both, compare, and say what was shown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    overrides = [part for one in options.overrides for part in ("--set", one)]
    with scratch() as folder:
        begin = time.monotonic()
        containers = in_containers(options.recipe, overrides, folder)
        print(f"in containers: {time.monotonic() - begin:.0f} s, {containers['status']}: {containers['reason']}")
        faults = served(containers, model_files(containers))
        local = on_this_machine(options.recipe, overrides, folder)
        faults += compare(containers, local)
    for fault in faults:
        print(f"not shown: {fault}", file=sys.stderr)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
