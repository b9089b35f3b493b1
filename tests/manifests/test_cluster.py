"""`make kind` and `make minikube`: what they ask of the machine and what they do, seen by programs that note calls."""

import importlib.util
import json
import os
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "manifests" / "cluster.py"
FRESH = {"docker": "29.1.0", "kind": "kind v0.33.0 go1.25", "minikube": "v1.38.1", "git": "git version 2.47.1"}
KUBECTL = {"clientVersion": {"gitVersion": "v1.35.2"}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """manifests/cluster.py, working in a folder of its own."""
    monkeypatch.setenv("MLITES_HOME", str(tmp_path / "home"))
    spec = importlib.util.spec_from_file_location("cluster", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster"] = module
    spec.loader.exec_module(module)
    (tmp_path / "home" / "cluster").mkdir(parents=True)
    return module


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all programs in versions that do, and nothing else on PATH; `calls` gets a line for each call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, version in FRESH.items():
        program(folder, name, f"print({version!r})")
    program(folder, "docker", "print('8 17179869184' if 'info' in sys.argv else '29.1.0')")
    program(folder, "kubectl", f"print({json.dumps(KUBECTL)!r}) if sys.argv[1] == 'version' else None")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, code: str) -> None:
    """Write a program that notes its arguments and its standard input, then does what the code says."""
    path = folder / name
    note = f"""\
        #!{sys.executable}
        import json, os, sys
        given = sys.stdin.read() if "-" in sys.argv else ""
        with open({str(folder / "calls")!r}, "a") as file:
            file.write(json.dumps([{name!r}, *sys.argv[1:], given, os.environ.get("KUBECONFIG", "")]) + "\\n")
        """
    path.write_text(textwrap.dedent(note) + code + "\n")
    path.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """What was called, in order."""
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The script as `make` calls it."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["kind", "minikube"])
def test_without_docker_it_says_what_is_missing_and_stops(kind: str, programs: Path) -> None:
    (programs / "docker").unlink()
    done = run("up", kind)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: cannot make a {kind} cluster: "
        "docker is not installed (24.0 or newer: docs.docker.com/engine/install)\n"
    )
    assert {call[0] for call in calls(programs)} == {kind, "kubectl", "git"}, "nothing but questions for versions"


def test_make_kind_says_it_too_and_builds_nothing_first(programs: Path) -> None:
    (programs / "docker").unlink()
    make = next(path for path in ("/usr/bin/make", "/bin/make", "/usr/local/bin/make") if Path(path).exists())
    done = subprocess.run([make, "-C", str(ROOT), "kind", f"PYTHON={sys.executable}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: cannot make a kind cluster: docker is not installed" in done.stderr
    assert "-m venv" not in done.stdout


def test_an_engine_that_does_not_answer_and_every_old_program_are_named_in_one_line(programs: Path) -> None:
    program(programs, "docker", "sys.exit('Cannot connect to the Docker daemon')")
    program(programs, "kind", "print('kind v0.20.0 go1.21')")
    program(programs, "kubectl", 'print(\'{"clientVersion": {"gitVersion": "v1.30.1"}}\')')
    done = run("check", "kind")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "docker is installed, but its engine does not answer" in done.stderr
    assert "kind is 0.20.0, 0.31 or newer is needed" in done.stderr
    assert "kubectl is 1.30.1, 1.34 or newer is needed" in done.stderr


def test_an_engine_that_is_too_small_is_refused(programs: Path) -> None:
    program(programs, "docker", "print('2 4294967296' if 'info' in sys.argv else '29.1.0')")
    done = run("check", "minikube")
    assert "docker has 2 CPUs, 4 are needed; docker has 4 GiB of memory, 12 are needed" in done.stderr


def test_a_machine_that_has_all_passes(programs: Path) -> None:
    assert run("check", "kind").returncode == run("check", "minikube").returncode == 0


def test_kubeflow_comes_first_then_keys_then_our_overlay_then_it_waits(cluster: ModuleType, programs: Path) -> None:
    cluster.install("kind")
    done = [" ".join(call[1:-2]) for call in calls(programs)]
    manifests = ROOT / "manifests"
    assert done[:4] == [
        f"apply --server-side --force-conflicts -k {manifests}/kfp/cluster",
        "wait --for condition=established --timeout=120s crd --all",
        f"apply --server-side --force-conflicts -k {manifests}/kfp",
        f"apply -k {manifests}/base/namespace",
    ]
    assert done[4:6] == ["apply -f -", "apply -f -"]
    assert done[6] == f"apply --server-side --force-conflicts -k {manifests}/overlays/kind"
    waited = {line.split()[4] for line in done[7:]}
    assert {"deployment/mlites-triton", "statefulset/mlites-seaweedfs", "deployment/ml-pipeline"} <= waited
    own = str(cluster._folder() / "kubeconfig")
    assert {call[-1] for call in calls(programs)} == {own}, "the user's own kubeconfig stays as it is"


def test_keys_are_random_made_once_and_seen_by_nobody_else(cluster: ModuleType, programs: Path) -> None:
    cluster.install("kind")
    secrets = [json.loads(call[-2]) for call in calls(programs) if call[-2]]
    assert {one["metadata"]["namespace"] for one in secrets} == {"mlites", "kubeflow"}
    assert secrets[0]["stringData"] == secrets[1]["stringData"] == cluster.credentials()
    assert len(secrets[0]["stringData"]["AWS_SECRET_ACCESS_KEY"]) == 48
    assert stat.S_IMODE((cluster._folder() / "s3.json").stat().st_mode) == 0o600
    for call in calls(programs):
        assert not any(key in part for key in secrets[0]["stringData"].values() for part in call[:-2])


def test_kubeflows_page_is_forwarded_until_the_cluster_ends(cluster: ModuleType, programs: Path) -> None:
    listen = (
        "import socket, time\nport = int(sys.argv[-1].split(':')[0])\n"
        "server = socket.create_server(('127.0.0.1', port))\ntime.sleep(120)"
    )
    program(programs, "kubectl", listen)
    address = cluster.forward()
    port = int(address.rsplit(":", 1)[1])
    pid = json.loads((cluster._folder() / "forward.json").read_text())["pid"]
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    cluster.down("kind")
    os.waitpid(pid, 0)
    assert cluster._free(port)
    assert calls(programs)[-1][:4] == ["kind", "delete", "cluster", "--name"]
    assert not cluster._folder().exists()


def test_a_forward_that_fails_says_where_to_look(cluster: ModuleType, programs: Path) -> None:
    program(programs, "kubectl", "sys.exit('error: no pods')")
    with pytest.raises(cluster.Failed, match=r"port-forward does not work; .*forward\.log tells why"):
        cluster.forward()


def test_a_command_that_fails_is_one_line(cluster: ModuleType, programs: Path) -> None:
    program(programs, "kubectl", "sys.exit('The connection was refused\\ndid you specify the right host')")
    with pytest.raises(cluster.Failed, match="The connection was refused did you specify") as fault:
        cluster._kubectl("get", "pods")
    assert "\n" not in str(fault.value)


def rendered(*arguments: str) -> list[dict[str, Any]]:
    """What `render` prints."""
    done = run("render", *arguments)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def test_production_gets_the_names_of_the_registry_and_of_s3() -> None:
    options = ["--registry", "r.example/team", "--tag", "1.2.3", "--s3-endpoint", "https://s3.example:9000"]
    documents = rendered("production", *options, "--store", "s3://models/mlites", "--region", "eu-1")
    images = {
        one["image"]
        for document in documents
        if document["kind"] == "Deployment"
        for part in ("initContainers", "containers")
        for one in document["spec"]["template"]["spec"].get(part, [])
    }
    assert images == {"r.example/team/mlites/triton:1.2.3", "r.example/team/mlites/deploy:1.2.3"}
    maps = {one["metadata"]["name"]: one["data"] for one in documents if one["kind"] == "ConfigMap"}
    assert maps["mlites-servers"]["MLITES_REPOSITORY"] == "s3://https://s3.example:9000/models/mlites/repository"
    assert maps["mlites-servers"]["MLITES_S3_ENDPOINT"] == "https://s3.example:9000"
    provider = yaml.safe_load(maps["kfp-launcher"]["providers"])["s3"]["default"]
    assert (provider["endpoint"], provider["region"], provider["disableSSL"]) == ("s3.example:9000", "eu-1", False)
    assert maps["kfp-launcher"]["defaultPipelineRoot"] == "s3://models/mlites/kfp"
    assert not list((ROOT / "manifests").glob(".render-*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--s3-endpoint", "s3.example"], "--s3-endpoint s3.example: must be http://host:port or https://host"),
        (["--s3-endpoint", "https://s3.example", "--store", "models"], "--store models: must be s3://bucket"),
    ],
)
def test_addresses_that_are_none_are_refused(arguments: list[str], words: str) -> None:
    done = run("render", "production", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
