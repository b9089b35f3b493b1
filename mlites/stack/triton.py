"""How the embedded tritonserver is started: explicit model control, repository in S3, on loopback alone."""

import hashlib
import http.client
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mlites.stack.triton_environment import VERSION, site_packages

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
BACKEND = Path(__file__).with_name("onnxruntime_backend.py")


def repository_url(store_uri: str, endpoint: str | None) -> str:
    """Where Triton reads models, in its own spelling of S3 with an endpoint.

    >>> repository_url("s3://mlites", "http://127.0.0.1:8333")
    's3://http://127.0.0.1:8333/mlites/repository'
    """
    place = store_uri.removeprefix("s3://").rstrip("/")
    if endpoint is None:
        return f"s3://{place}/repository"
    parts = urlsplit(endpoint)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return f"s3://{parts.scheme}://{parts.hostname}:{port}/{place}/repository"


def command(folder: Path, environment: Path, ports: dict[str, int], repository: str) -> list[str]:
    """The command line. Models that were deployed before are loaded again; a bad one does not keep the others out."""
    server = _server(environment)
    return [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--exit-on-error=false",
        "--strict-readiness=false",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=5",
        f"--backend-directory={folder / 'backends'}",
        f"--cache-directory={server / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={_region(folder)}",
        *(f"--{name}-address=127.0.0.1" for name in ports),
        *(f"--{name}-port={port}" for name, port in ports.items()),
        "--allow-gpu-metrics=false",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.5:0.05,0.95:0.002,0.99:0.001",
        "--pinned-memory-pool-byte-size=0",
    ]


def variables(environment: Path, access: Mapping[str, str]) -> dict[str, str]:
    """The environment: the stub finds its Python by PATH and its libraries by LD_LIBRARY_PATH.

    Args:
        environment: the virtual environment's folder.
        access: AWS variables with which Triton reads the repository.
    """
    return {
        **access,
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"{site_packages(environment) / 'nvidia_pytriton.libs'}:{environment / 'lib'}",
        "HOME": os.environ.get("HOME", "/"),
        "CUDA_VISIBLE_DEVICES": "",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def install_backends(folder: Path, environment: Path) -> None:
    """Lay out ``backends/``: Triton's Python backend with the stub for this Python, and ours on top of it."""
    server = _server(environment)
    shutil.rmtree(folder / "backends", ignore_errors=True)
    python, onnxruntime = folder / "backends" / "python", folder / "backends" / "onnxruntime"
    shutil.copytree(server / "backends" / "python", python)
    shutil.copy(server / "python_backend_stubs" / VERSION / "triton_python_backend_stub", python)
    onnxruntime.mkdir()
    shutil.copy(BACKEND, onnxruntime / "model.py")


def answers(ports: dict[str, int]) -> bool:
    """Whether the server takes requests, over HTTP; gRPC opens before it."""
    connection = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=2)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def clear(folder: Path) -> None:
    """Remove the shared memory that a killed server leaves behind."""
    for path in Path("/dev/shm").glob(f"{_region(folder)}*"):  # noqa: S108
        path.unlink(missing_ok=True)


def _server(environment: Path) -> Path:
    return site_packages(environment) / "pytriton" / "tritonserver"


def _region(folder: Path) -> str:
    return f"mlites-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}-"
