"""HTTP to Kubeflow Pipelines: with time limits, and one clear line for each way that it fails."""

import json
import re
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3
from kfp_server_api import ApiException, Configuration
from kfp_server_api.rest import RESTClientObject
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from pipelines.cluster.access import Access, expiry
from pipelines.cluster.errors import ClusterError

CONNECT_SECONDS = 10.0
TRIES = 3  # of a request that changes nothing
WAIT_SECONDS = 0.5  # before the second try; doubled after it
PASSING = {429, 502, 503, 504}


class Wire(RESTClientObject):  # type: ignore[misc]
    """The generated client's HTTP; it has no time limits of its own and takes any answer for one of the API."""

    def __init__(self, configuration: Configuration, access: Access) -> None:
        configuration.retries = urllib3.Retry(0, redirect=0, raise_on_redirect=False)
        super().__init__(configuration)
        self.access = access

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        """Ask once, or a few times where nothing is changed by it.

        Raises:
            ClusterError: there was no good answer.
        """
        options["_request_timeout"] = (min(CONNECT_SECONDS, self.access.timeout), self.access.timeout)
        for wait in [WAIT_SECONDS * 2**tried for tried in range(TRIES - 1)] if method == "GET" else []:
            try:
                return self._ask(method, url, *args, **options)
            except ClusterError as error:
                if not error.passing:
                    raise
                time.sleep(wait)
        return self._ask(method, url, *args, **options)

    def _ask(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        place = f"Kubeflow Pipelines at {self.access.host}"
        try:
            answer = super().request(method, url, *args, **options)
        except ApiException as error:
            if error.status == 0:
                raise ClusterError(f"{place}: {_no_tls(str(error.reason))}") from None
            raise self._refused(place, method, url, error) from None
        except HTTPError as error:
            raise self._unreachable(place, method, error) from None
        _check_json(place, answer.data)
        return answer

    def _unreachable(self, place: str, method: str, error: HTTPError) -> ClusterError:
        reason = getattr(error, "reason", None) or error
        after = "" if method == "GET" else "; it may have been carried out all the same: look before you repeat it"
        if isinstance(reason, NameResolutionError):
            return ClusterError(f"{place}: this host name cannot be resolved; check --host (MLITES_KFP_HOST)")
        if isinstance(reason, NewConnectionError):
            return ClusterError(
                f"{place}: the connection is refused; is it up there, or its port forwarded?", passing=True
            )
        if isinstance(reason, ConnectTimeoutError):
            return ClusterError(
                f"{place}: no connection within {min(CONNECT_SECONDS, self.access.timeout):g} s; check --host",
                passing=True,
            )
        if isinstance(reason, SSLError):
            return ClusterError(f"{place}: {_no_tls(str(reason))}")
        if isinstance(reason, ReadTimeoutError):
            return ClusterError(
                f"{place}: no answer within {self.access.timeout:g} s (MLITES_KFP_TIMEOUT){after}", passing=True
            )
        return ClusterError(f"{place}: the answer broke off ({type(reason).__name__}){after}", passing=True)

    def _refused(self, place: str, method: str, url: str, error: ApiException) -> ClusterError:
        status, told = int(error.status), _message(error.body)
        said = f": {told}" if told else ""
        what = f"{method} {urlsplit(url).path}"
        if 300 <= status < 400:
            headers = error.headers or {}
            target = str(headers.get("location") or headers.get("Location") or "elsewhere").split("?")[0]
            line = f"it sends on to {target}, which looks like a login; {self._credentials()}"
        elif status == 401:
            line = f"{self._not_known()}{said}"
        elif status == 403:
            line = (
                f"these credentials may not {what}{said}; ask for that right, or name your namespace with --namespace"
            )
        elif status == 404:
            line = f"there is no {what} (404){said}; check --host, or whether it was deleted"
        elif status == 409:
            line = f"{what} conflicts with what is there (409){said}; look at it, then try again"
        elif status < 500:
            line = f"it refuses {what} ({status}){said}"
        else:
            line = f"{what} failed there ({status}){said}; its ml-pipeline deployment's log says more"
        return ClusterError(f"{place}: {line}", status, passing=status in PASSING)

    def _not_known(self) -> str:
        token = self.access.bearer()
        expired = expiry(token) if token else None
        if expired is not None and expired <= datetime.now(UTC):
            return f"the token expired at {expired:%Y-%m-%d %H:%M:%S} UTC (401); get a new one"
        if token or self.access.cookie:
            return f"it does not accept the {'token' if token else 'cookie'} (401); {self._credentials()}"
        return f"it asks who you are (401); {self._credentials()}"

    def _credentials(self) -> str:
        return "set MLITES_KFP_TOKEN_FILE, MLITES_KFP_TOKEN or MLITES_KFP_COOKIE"


def _check_json(place: str, body: bytes) -> None:
    """The generated client would take any text for an answer."""
    try:
        if not body.strip() or isinstance(json.loads(body), dict):
            return
    except ValueError:
        pass
    if b"<html" in body[:2000].lower() or b"<!doctype" in body[:2000].lower():
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", body[:20000], re.IGNORECASE | re.DOTALL)
        called = f" ({_one_line(title[1].decode(errors='replace'))})" if title else ""
        raise ClusterError(
            f"{place}: a web page{called} answers in its place, perhaps a login; set MLITES_KFP_TOKEN_FILE, "
            "MLITES_KFP_TOKEN or MLITES_KFP_COOKIE, or correct --host"
        )
    raise ClusterError(f"{place}: the answer is no whole JSON document; another server, or it broke off", passing=True)


def _message(body: Any) -> str:
    """What the API says of its error, in one line."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        document = json.loads(text)
        text = str(document.get("message") or document.get("error") or "") if isinstance(document, dict) else ""
    except ValueError:
        text = "" if "<" in text[:200] else text
    return _one_line(text)


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:300]


def _no_tls(reason: str) -> str:
    if "WRONG_VERSION_NUMBER" in reason or "record layer" in reason.lower():
        return "it does not speak TLS; its address may begin with http://"
    why = re.search(r"certificate verify failed: ([^(]+)", reason)
    if why or "certificate" in reason.lower():
        what = why[1].strip(" '\"") if why else "wrong certificate"
        return f"its certificate is not trusted ({what}); give its authorities with --ca (MLITES_KFP_CA)"
    return f"no TLS connection ({_one_line(reason)})"
