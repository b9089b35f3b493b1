"""Where Kubeflow Pipelines answers, and who asks."""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from mlites.errors import InputError

IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PIPELINES_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")  # projected for KFP, renewed by the kubelet


@dataclass(frozen=True)
class Access:
    """How to reach the API.

    Attributes:
        host: http(s)://host[:port][/path].
        token: for ``Authorization: Bearer``; empty where there is none, or it stands in a file.
        token_file: read anew for each request, since it may be renewed meanwhile.
        cookie: sent as it is.
        ca: PEM bundle of authorities to trust in place of the public ones.
        namespace: of a Kubeflow with several users.
        timeout: how long one answer may take, seconds.
    """

    host: str
    token: str = ""
    token_file: Path | None = None
    cookie: str = ""
    ca: Path | None = None
    namespace: str = ""
    timeout: float = 30.0

    def bearer(self) -> str:
        """The token as it is now; empty if there is none.

        Raises:
            InputError: its file cannot be read.
        """
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.token_file}: cannot read the token: {error}") from None


def find_access(
    host: str | None = None,
    namespace: str | None = None,
    ca: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Access:
    """Settings from options and environment; in a pod of the cluster none are needed.

    Args:
        host: in place of MLITES_KFP_HOST.
        namespace: in place of MLITES_KFP_NAMESPACE.
        ca: in place of MLITES_KFP_CA.
        environment: also MLITES_KFP_TOKEN or MLITES_KFP_TOKEN_FILE, MLITES_KFP_COOKIE, MLITES_KFP_TIMEOUT.

    Raises:
        InputError: one of them cannot be right, or the address is missing.
    """
    in_pod = (SERVICE_ACCOUNT / "namespace").is_file()
    address = host or environment.get("MLITES_KFP_HOST") or (IN_CLUSTER if in_pod else "")
    if not address:
        raise InputError("where is Kubeflow Pipelines? name its address with --host or MLITES_KFP_HOST")
    token, token_file = environment.get("MLITES_KFP_TOKEN", "").strip(), environment.get("MLITES_KFP_TOKEN_FILE")
    if token and token_file:
        raise InputError("set one of MLITES_KFP_TOKEN and MLITES_KFP_TOKEN_FILE, not both")
    given = ca or (Path(environment["MLITES_KFP_CA"]) if environment.get("MLITES_KFP_CA") else None)
    if given is not None and not given.is_file():
        raise InputError(f"--ca {given}: no such file; give a PEM bundle of certificate authorities")
    file = Path(token_file) if token_file else None
    if not token and file is None and in_pod and address == IN_CLUSTER and PIPELINES_TOKEN.is_file():
        file = PIPELINES_TOKEN
    access = Access(
        host=_checked_host(address),
        token=_one_line("MLITES_KFP_TOKEN", token),
        token_file=file,
        cookie=_one_line("MLITES_KFP_COOKIE", environment.get("MLITES_KFP_COOKIE", "").strip()),
        ca=given,
        namespace=namespace or environment.get("MLITES_KFP_NAMESPACE") or _own_namespace(),
        timeout=_seconds(environment.get("MLITES_KFP_TIMEOUT", "30")),
    )
    _one_line("the token's file", access.bearer())
    return access


def expiry(token: str) -> datetime | None:
    """When a JSON Web Token expires; None where it does not say, or is none.

    >>> expiry("e30.eyJleHAiOiAwfQ.c2ln")
    datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
    >>> expiry("opaque") is None
    True
    """
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return datetime.fromtimestamp(int(claims["exp"]), UTC)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError):
        return None


def _own_namespace() -> str:
    path = SERVICE_ACCOUNT / "namespace"
    return path.read_text().strip() if path.is_file() else ""


def _checked_host(host: str) -> str:
    try:
        parts = urlsplit(host)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        good = good and not parts.query and not parts.fragment and parts.port != 0
    except ValueError:
        good = False
    if not good:  # not echoed: it may hold a password
        raise InputError("--host (MLITES_KFP_HOST) must be http(s)://host[:port][/path], without keys")
    return host.rstrip("/")


def _one_line(what: str, secret: str) -> str:
    if any(ord(letter) < 32 or ord(letter) > 126 for letter in secret):
        raise InputError(f"{what} holds what no header may: expected one line of ASCII")
    return secret


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise InputError(f"MLITES_KFP_TIMEOUT must be seconds, above 0 and at most 3600, got {text[:40]!r}")
    return seconds
