"""The images of the servers: SeaweedFS and Triton start without rights, and a Triton that restarts serves as before.

    python -m tests.benchmarks.server_containers --base localhost/python-base:bookworm

Wants podman, buildah and the images mlites/seaweedfs and mlites/deploy. NVIDIA's image has gigabytes, so
docker/triton.Dockerfile is built on a stand-in for it: BASE, and a `tritonserver` that is the embedded one of
`mlites stack up`, mounted from this machine. Settings, user, read-only root and start script are those of the image.
All containers share one network namespace without a way out of it.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlites import __version__
from mlites.stack import triton, triton_environment

ROOT = Path(__file__).parents[2]
LOCKED = ["--pull", "never", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
SCRATCH = ["--tmpfs", "/tmp:rw,mode=1777,size=1g"]
STAND_IN, IMAGE = "localhost/mlites-stand-in:test", "localhost/mlites/triton:test"
S3 = {
    "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24),
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "MLITES_S3_ENDPOINT": "http://127.0.0.1:8333",
    "MLITES_REPOSITORY": "s3://http://127.0.0.1:8333/mlites/repository",
    "MLITES_TRITON_URL": "http://127.0.0.1:8000",
    "MLITES_TRITON_GRPC": "127.0.0.1:8001",
}

STAND_IN_FILE = """\
FROM {base}
COPY --chmod=755 tritonserver /usr/local/bin/tritonserver
RUN chmod a+x /root
"""

PUT_MODEL = """
import onnx
from onnx import TensorProto, helper
from mlites.storage import Store

rows, logits = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("input", "logits")]
graph = helper.make_graph([helper.make_node("Neg", ["input"], ["logits"])], "neg", [rows], [logits])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
config = '''name: "neg" backend: "onnxruntime" max_batch_size: 4
input [{name: "input" data_type: TYPE_FP32 dims: [3]}] output [{name: "logits" data_type: TYPE_FP32 dims: [3]}]
instance_group [{count: 1 kind: KIND_CPU}] version_policy {specific {versions: [2]}}'''
store = Store.open("s3://mlites")
store.put("repository/neg/2/model.onnx", model.SerializeToString())
store.put("repository/neg/config.pbtxt", config.encode())
"""
ASK = """
import sys
import numpy as np
from mlites.serving.server import Triton

server = Triton.from_environment()
if "load" in sys.argv:
    server.load("neg")
server.wait_until_ready("neg", 2)
answer = server.infer_http("neg", 2, np.array([[1.0, 2.0, 3.0]], dtype=np.float32))
assert answer.tolist() == [[-1.0, -2.0, -3.0]], answer
print("version 2 of neg answers")
"""


def podman(*arguments: str) -> str:
    """Run podman with the keys in its environment, not on its command line."""
    done = subprocess.run(["podman", *arguments], env={**os.environ, **S3}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"podman {' '.join(arguments)[:200]}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return done.stdout.strip()


def variables() -> list[str]:
    """Options that hand on the environment."""
    return [part for name in S3 for part in ("--env", name)]


def build_triton(base: str, folder: Path) -> list[str]:
    """Build docker/triton.Dockerfile on the stand-in; returns the options that mount the embedded server."""
    environment = triton_environment.prepare(print)
    triton.install_backends(folder, environment)
    server = triton_environment.site_packages(environment) / "pytriton" / "tritonserver"
    settings = triton.variables(environment, {})
    script = f"""\
        #!/bin/sh
        export PATH={settings["PATH"]} LD_LIBRARY_PATH={settings["LD_LIBRARY_PATH"]} CUDA_VISIBLE_DEVICES=
        exec {server}/bin/tritonserver --backend-directory={folder}/backends --cache-directory={server}/caches \\
            --allow-gpu-metrics=false "$@"
        """
    context = folder / "context"
    context.mkdir()
    (context / "tritonserver").write_text(textwrap.dedent(script))
    (context / "Dockerfile").write_text(STAND_IN_FILE.format(base=base))
    for image, where, file in (
        (STAND_IN, context, context / "Dockerfile"),
        (IMAGE, ROOT, ROOT / "docker/triton.Dockerfile"),
    ):
        command = [
            "buildah",
            "bud",
            "--format",
            "docker",
            "--build-arg",
            f"BASE={STAND_IN}",
            "-f",
            str(file),
            "-t",
            image,
        ]
        subprocess.run([*command, str(where)], check=True, capture_output=True)
    python = Path(sys.base_prefix)
    return [part for path in (environment, folder, python) for part in ("-v", f"{path}:{path}:ro")]


@contextmanager
def container(name: str, *options: str) -> Iterator[None]:
    """A container in the background, gone at the end."""
    podman("run", "-d", "--name", name, *LOCKED, *SCRATCH, *variables(), *options)
    try:
        yield
    finally:
        subprocess.run(["podman", "rm", "-f", "-t", "5", name], capture_output=True)


def wait_until_well(name: str, seconds: float = 90.0) -> None:
    """Wait until the image's own HEALTHCHECK says that the server is well."""
    deadline = time.monotonic() + seconds
    while subprocess.run(["podman", "healthcheck", "run", name], capture_output=True).returncode:
        if time.monotonic() > deadline:
            logs = subprocess.run(["podman", "logs", "--tail", "20", name], capture_output=True, text=True)
            raise SystemExit(f"{name} does not become well:\n{logs.stdout}{logs.stderr}")
        time.sleep(1)


def main() -> None:
    """Start both servers, deploy, restart Triton, ask again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True, help="image that mlites/deploy was built on")
    options = parser.parse_args()
    mark = f"mlites-{os.getpid()}"
    store, server = f"{mark}-seaweedfs", f"{mark}-triton"
    folder = Path(tempfile.mkdtemp(prefix="mlites-servers-"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    os.chown(data, 1000, 1000)
    step = [
        "run",
        "--rm",
        *LOCKED,
        *SCRATCH,
        *variables(),
        "--network",
        f"container:{store}",
        f"mlites/deploy:{__version__}",
    ]
    try:
        mounts = build_triton(options.base, folder)
        with container(store, "--network", "none", "-v", f"{data}:/data", f"mlites/seaweedfs:{__version__}"):
            wait_until_well(store)
            print("SeaweedFS is well as user", podman("exec", store, "id", "-u"))
            print(podman(*step, "python3", "-m", "mlites.serving.provide"))
            started = [*mounts, "--network", f"container:{store}", IMAGE]
            with container(server, *started):
                wait_until_well(server)
                print("Triton is well as user", podman("exec", server, "id", "-u"), "on an empty repository")
                podman(*step, "python3", "-c", PUT_MODEL)
                print(podman(*step, "python3", "-c", ASK, "load"))
            with container(server, *started):
                wait_until_well(server)
                print("after a restart, with nobody telling it:", podman(*step, "python3", "-c", ASK))
    finally:
        subprocess.run(["podman", "rmi", "-f", IMAGE, STAND_IN], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
