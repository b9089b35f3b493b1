"""A cluster on this machine with Kubeflow Pipelines and mlites in it, and the manifests for yours.

    python3 manifests/cluster.py up kind        # or minikube; `make kind`, `make minikube`
    python3 manifests/cluster.py down kind      # `make kind-down`
    python3 manifests/cluster.py render production --registry R --s3-endpoint URL --store s3://bucket

Needs Python alone besides the programs that it checks for. What it makes it keeps apart: an own kubeconfig in
.mlites/cluster, a cluster named mlites.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = ROOT / "manifests"
NAME = "mlites"
KUBERNETES = "v1.35.0"  # of minikube; kind has its own in overlays/kind/cluster.yaml
IMAGES = ("train", "validate", "deploy", "triton", "seaweedfs")
LEAST_CPUS, LEAST_GIB = 4, 12
UI_PORT = 8080
FORWARD_SECONDS = 60.0


class Refused(Exception):
    """What is missing or wrong, in one line; nothing was begun."""


class Failed(Exception):
    """A command that did not do what it should."""


@dataclass(frozen=True)
class Tool:
    """A program that is needed.

    Attributes:
        name: of the program.
        asks: its arguments that print a version.
        least: the oldest version that does.
        where: where it is had.
    """

    name: str
    asks: tuple[str, ...]
    least: tuple[int, ...]
    where: str


DOCKER = Tool("docker", ("version", "--format", "{{.Server.Version}}"), (24, 0), "docs.docker.com/engine/install")
KUBECTL = Tool("kubectl", ("version", "--client", "-o", "json"), (1, 34), "kubernetes.io/docs/tasks/tools")
GIT = Tool("git", ("version",), (2, 20), "git-scm.com")
TOOLS = {
    "kind": (DOCKER, Tool("kind", ("version",), (0, 31), "kind.sigs.k8s.io"), KUBECTL, GIT),
    "minikube": (DOCKER, Tool("minikube", ("version", "--short"), (1, 38), "minikube.sigs.k8s.io"), KUBECTL, GIT),
}


def check_tools(kind: str) -> None:
    """Find every program in a version that does.

    Raises:
        Refused: all that is missing, in one line.
    """
    faults = [fault for tool in TOOLS[kind] if (fault := _fault(tool))]
    if not faults:
        faults = _small_engine()
    if faults:
        raise Refused(f"cannot make a {kind} cluster: {'; '.join(faults)}")


def up(kind: str, torch_index: str = "") -> None:
    """Make the cluster, put Kubeflow Pipelines and mlites into it, run the digits recipe, say where it is.

    Args:
        kind: a key of TOOLS.
        torch_index: package index of the train image's PyTorch; empty for pip's own.
    """
    check_tools(kind)
    mlites = ROOT / ".venv" / "bin" / "mlites"
    if not mlites.exists():
        raise Refused("no .venv/bin/mlites; make it with: make .venv/ready")
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    build = [sys.executable, str(ROOT / "docker" / "build.py"), "--engine", "docker"]
    _step("images", [*build, *(["--torch-index", torch_index] if torch_index else []), *IMAGES])
    if kind == "kind":
        if NAME not in _read(["kind", "get", "clusters"]).split():
            config = MANIFESTS / "overlays" / "kind" / "cluster.yaml"
            _step("cluster", ["kind", "create", "cluster", "--config", str(config), "--wait", "300s"])
        _step("load images", ["kind", "load", "docker-image", "--name", NAME, *image_names()])
    else:
        _step("cluster", minikube_start())
        for image in image_names():
            _step(f"load {image}", ["minikube", "-p", NAME, "image", "load", image])
    install(kind)
    address = forward()
    _step("digits", [str(mlites), "submit", "digits", "--wait", "--host", address])
    print(f"Kubeflow Pipelines: {address}")
    print(f"kubectl:            kubectl --kubeconfig {_folder() / 'kubeconfig'} -n mlites get pods")
    print(f"end:                make {kind}-down")


def install(kind: str) -> None:
    """Put Kubeflow Pipelines as released, credentials, and our overlay into the cluster, and wait for all of it."""
    kfp = MANIFESTS / "kfp"
    _step("Kubeflow Pipelines", apply(kfp / "cluster"))
    _kubectl("wait", "--for", "condition=established", "--timeout=120s", "crd", "--all")
    _step("Kubeflow Pipelines", apply(kfp))
    _kubectl("apply", "-k", str(MANIFESTS / "base" / "namespace"))
    keys = credentials()
    for namespace in ("mlites", "kubeflow"):
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "mlites-s3", "namespace": namespace},
            "stringData": keys,
        }
        _kubectl("apply", "-f", "-", given=json.dumps(document))
    _step("mlites", apply(MANIFESTS / "overlays" / kind))
    for namespace, what in (
        ("mlites", "statefulset/mlites-seaweedfs"),
        ("mlites", "deployment/mlites-triton"),
        ("mlites", "deployment/mlites-triton-sandbox"),
        ("kubeflow", "deployment/ml-pipeline"),
        ("kubeflow", "deployment/ml-pipeline-ui"),
    ):
        _step(f"wait for {what}", ["kubectl", "-n", namespace, "rollout", "status", what, "--timeout=1200s"])


def credentials() -> dict[str, str]:
    """The keys of the cluster's SeaweedFS: made once, kept where their owner alone can read them."""
    path = _folder() / "s3.json"
    if not path.exists():
        keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24)}
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(keys, file)
    found: dict[str, str] = json.loads(path.read_text())
    return found


def forward() -> str:
    """Have Kubeflow's page on a port of this machine, until `down`; returns its address."""
    record = _folder() / "forward.json"
    _end_forward()
    port = next(port for port in range(UI_PORT, UI_PORT + 100) if _free(port))
    with (_folder() / "forward.log").open("w") as log:
        process = subprocess.Popen(
            ["kubectl", "-n", "kubeflow", "port-forward", "svc/ml-pipeline-ui", f"{port}:80"],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record.write_text(json.dumps({"pid": process.pid}))
    deadline = time.monotonic() + FORWARD_SECONDS
    while _free(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"kubectl port-forward does not work; {_folder() / 'forward.log'} tells why")
        time.sleep(0.2)
    process.returncode = 0  # it outlives this script, which is not to wait for it
    return f"http://127.0.0.1:{port}"


def down(kind: str) -> None:
    """End the cluster and forget its keys; where there is none, nothing happens."""
    if not shutil.which(kind):
        raise Refused(f"{kind} is not installed, so it runs no cluster here")
    _end_forward()
    command = ["kind", "delete", "cluster", "--name", NAME] if kind == "kind" else ["minikube", "delete", "-p", NAME]
    _step("end", command)
    shutil.rmtree(_folder(), ignore_errors=True)


def render(options: argparse.Namespace) -> str:
    """The manifests of an overlay, with the names of your registry and the places of your servers put in."""
    if not shutil.which("kubectl"):
        raise Refused(f"kubectl is not installed: {KUBECTL.where}")
    with tempfile.TemporaryDirectory(dir=MANIFESTS, prefix=".render-") as folder:
        overlay = kustomization(
            options.overlay, options.registry, options.tag, options.s3_endpoint, options.region, options.store
        )
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(overlay, indent=1))
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"kubectl kustomize: {' '.join(done.stderr.split())[-500:]}")
    return done.stdout


def kustomization(overlay: str, registry: str, tag: str, endpoint: str, region: str, store: str) -> dict[str, object]:
    """A kustomization on top of an overlay.

    Args:
        overlay: its folder's name.
        registry: goes before the images' names, empty to leave them.
        tag: of the images.
        endpoint: of S3, ``http(s)://host[:port]``; empty to leave the overlay's servers as they are.
        region: of S3.
        store: ``s3://bucket`` or ``s3://bucket/prefix``.
    """
    prefix = f"{registry.rstrip('/')}/" if registry else ""
    images = [{"name": f"mlites/{kind}", "newName": f"{prefix}mlites/{kind}", "newTag": tag} for kind in IMAGES]
    patches = []
    if endpoint:
        servers, launcher = s3_settings(endpoint, region, store)
        for name, data in (("mlites-servers", servers), ("kfp-launcher", launcher)):
            patch = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
            patches.append({"target": {"kind": "ConfigMap", "name": name}, "patch": json.dumps(patch)})
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../overlays/{overlay}"],
        "images": images,
        "patches": patches,
    }


def s3_settings(endpoint: str, region: str, store: str) -> tuple[dict[str, str], dict[str, str]]:
    """What mlites-servers and kfp-launcher say about S3.

    Raises:
        Refused: not an address.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise Refused(f"--s3-endpoint {endpoint}: must be http://host:port or https://host")
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w./-]+)?", store):
        raise Refused(f"--store {store}: must be s3://bucket or s3://bucket/prefix")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    place = store.removeprefix("s3://").rstrip("/")
    servers = {
        "AWS_REGION": region,
        "MLITES_S3_ENDPOINT": endpoint.rstrip("/"),
        "MLITES_STORE": f"s3://{place}",
        "MLITES_REPOSITORY": f"s3://{parts.scheme}://{parts.hostname}:{port}/{place}/repository",
    }
    secret = {"secretName": "mlites-s3", "accessKeyKey": "AWS_ACCESS_KEY_ID", "secretKeyKey": "AWS_SECRET_ACCESS_KEY"}
    provider = {
        "endpoint": f"{parts.hostname}:{port}" if parts.port else parts.hostname,
        "region": region,
        "disableSSL": parts.scheme == "http",
        "forcePathStyle": True,
        "credentials": {"fromEnv": False, "secretRef": secret},
    }
    return servers, {
        "defaultPipelineRoot": f"s3://{place}/kfp",
        "providers": json.dumps({"s3": {"default": provider}}, indent=1),
    }


def apply(folder: Path) -> list[str]:
    """The command that brings a kustomization into the cluster, and takes over what others wrote there before."""
    return ["kubectl", "apply", "--server-side", "--force-conflicts", "-k", str(folder)]


def minikube_start() -> list[str]:
    """The command that makes a minikube cluster, or starts it again; calico enforces network policies."""
    sizes = ["--cpus", str(LEAST_CPUS), "--memory", f"{LEAST_GIB}g"]
    return [
        "minikube",
        "start",
        "-p",
        NAME,
        "--driver=docker",
        "--cni=calico",
        f"--kubernetes-version={KUBERNETES}",
        *sizes,
    ]


def version() -> str:
    """The package's version, the default tag of the images."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "mlites" / "__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def image_names() -> list[str]:
    """Of every image that the local overlays and the pipelines name."""
    return [f"mlites/{kind}:{version()}" for kind in IMAGES]


def _fault(tool: Tool) -> str | None:
    if not shutil.which(tool.name):
        return f"{tool.name} is not installed ({'.'.join(map(str, tool.least))} or newer: {tool.where})"
    done = subprocess.run([tool.name, *tool.asks], capture_output=True, text=True, timeout=60)
    found = re.search(r"(\d+)\.(\d+)(?:\.\d+)?", done.stdout)
    if tool is DOCKER and (done.returncode or not found):
        return "docker is installed, but its engine does not answer (start it; `docker info` tells more)"
    if done.returncode or not found:
        return f"{tool.name} does not tell its version"
    if tuple(map(int, found.groups())) < tool.least:
        return f"{tool.name} is {found[0]}, {'.'.join(map(str, tool.least))} or newer is needed ({tool.where})"
    return None


def _small_engine() -> list[str]:
    cpus, memory = _read(["docker", "info", "--format", "{{.NCPU}} {{.MemTotal}}"]).split()
    faults = []
    if int(cpus) < LEAST_CPUS:
        faults.append(f"docker has {cpus} CPUs, {LEAST_CPUS} are needed")
    if int(memory) < LEAST_GIB * 2**30 * 0.95:  # of 12 GiB, a little is the kernel's
        faults.append(f"docker has {int(memory) / 2**30:.0f} GiB of memory, {LEAST_GIB} are needed")
    return faults


def _folder() -> Path:
    return Path(os.environ.get("MLITES_HOME") or ROOT / ".mlites").resolve() / "cluster"


def _environment() -> Mapping[str, str]:
    return {**os.environ, "KUBECONFIG": str(_folder() / "kubeconfig")}


def _step(what: str, command: Sequence[str]) -> None:
    print(f"== {what}", flush=True)
    if subprocess.run(command, env=_environment()).returncode:
        raise Failed(f"{what}: this did not work: {' '.join(command)}")


def _kubectl(*arguments: str, given: str | None = None) -> None:
    command = ["kubectl", *arguments]
    done = subprocess.run(command, env=_environment(), input=given, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {' '.join(done.stderr.split())[-500:]}")


def _read(command: Sequence[str]) -> str:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {' '.join(done.stderr.split())[-500:]}")
    return done.stdout


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _end_forward() -> None:
    record = _folder() / "forward.json"
    if not record.exists():
        return
    pid = int(json.loads(record.read_text())["pid"])
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"port-forward" in command.read_bytes():  # and not another's, whose number it is now
        os.kill(pid, signal.SIGTERM)
    record.unlink()


def main(arguments: list[str]) -> int:
    """Do what is asked; exit 2 where something is missing, 1 where a command fails, with one line each."""
    parser = argparse.ArgumentParser(description="Clusters on this machine, manifests for yours.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "up", "down"):
        one = commands.add_parser(name)
        one.add_argument("kind", choices=sorted(TOOLS))
        if name == "up":
            one.add_argument("--torch-index", default="", help="package index for PyTorch; default: the one pip uses")
    rendering = commands.add_parser("render")
    rendering.add_argument("overlay", choices=["kind", "minikube", "production"])
    rendering.add_argument("--registry", default="", help="goes before the images' names")
    rendering.add_argument("--tag", default=version(), help="of the images; default: %(default)s")
    rendering.add_argument("--s3-endpoint", default="", help="http(s)://host[:port]; default: the overlay's")
    rendering.add_argument("--region", default="us-east-1", help="default: %(default)s")
    rendering.add_argument("--store", default="s3://mlites", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        if options.command == "render":
            sys.stdout.write(render(options))
        elif options.command == "up":
            up(options.kind, options.torch_index)
        else:
            (check_tools if options.command == "check" else down)(options.kind)
    except (Refused, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, Refused) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
