"""Kubernetes' API: credentials, patience with an API that is away, and each of its faults in one line."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from mlites.errors import InputError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT_SECONDS = (5, 30)  # to connect, to answer
PATIENCE_SECONDS = 180.0  # with an API that does not answer or says that it cannot now
PAUSE_SECONDS = 1.0  # before the next try, doubled each time up to ten
TRANSIENT = {408, 429, 500, 502, 503, 504}


class Away(Exception):
    """The API does not answer, or the namespace has no room: another try may do better. The message is one line."""


class Missing(Exception):
    """There is no such object, or no such kind; the message is what the API says."""


class Conflict(Exception):
    """There is an object of this name."""


class Kubernetes:
    """The API of a cluster, as this pod's service account sees it; outside a pod, as KUBECONFIG says.

    Attributes:
        host: its address.
        namespace: of the pod, or of the context in KUBECONFIG.
        apps, core, objects: the calls for Deployments, for pods, and for custom objects, to be handed to `ask`.
    """

    def __init__(self, purpose: str) -> None:
        """Read the credentials.

        Args:
            purpose: who needs them, for the error.

        Raises:
            InputError: there are none.
        """
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
            self.namespace = NAMESPACE_FILE.read_text().strip()
        except config.ConfigException:
            path = os.environ.get("KUBECONFIG")  # the client would take it as it stood when it was imported
            try:
                config.load_kube_config(path, client_configuration=settings)
                _, context = config.list_kube_config_contexts(path)
            except (config.ConfigException, OSError) as error:
                raise InputError(
                    f"{purpose} needs Kubernetes' API: this is no pod with a service account, and "
                    f"{path or '~/.kube/config'} names no cluster ({one_line(str(error))}); set KUBECONFIG"
                ) from None
            self.namespace = str(context["context"].get("namespace") or "default")
        self.host = settings.host
        api = client.ApiClient(settings)
        self.apps, self.core, self.objects = client.AppsV1Api(api), client.CoreV1Api(api), client.CustomObjectsApi(api)

    def ask(self, what: str, call: Callable[..., Any], *, patience_s: float | None = None, **arguments: Any) -> Any:
        """Call until there is an answer, or patience ends; so the call must do no harm when it is done twice.

        Args:
            what: is asked for, as in "list pods".
            call: of `apps`, `core` or `objects`.
            patience_s: how long to try; None: `PATIENCE_SECONDS`.
            arguments: of the call, with ``namespace``.

        Raises:
            InputError: the cluster refuses it, and will again.
            Missing: there is no such object.
            Conflict: there is one already.
            Away: no answer, or no room.
        """
        patience_s = patience_s or PATIENCE_SECONDS
        deadline, pause = time.monotonic() + patience_s, PAUSE_SECONDS
        while True:
            with self._faults(what, arguments["namespace"]) as fault:
                answer = call(**arguments, _request_timeout=TIMEOUT_SECONDS)
                if not isinstance(answer, str):  # what the client hands on where it finds no JSON
                    return answer
                fault.append("an answer that is no JSON")
            if time.monotonic() > deadline:
                raise Away(f"Kubernetes at {self.host} could not {what} for {patience_s:.0f} s: {fault[0]}")
            time.sleep(pause)
            pause = min(2 * pause, 10 * PAUSE_SECONDS)

    @contextmanager
    def _faults(self, what: str, namespace: str) -> Iterator[list[str]]:
        """Yield a list that gets what another try may not meet; all else is raised in one line."""
        transient: list[str] = []
        try:
            yield transient
        except ApiException as error:
            said = _message(error)
            if error.status in TRANSIENT:
                transient.append(f"{error.status} {said}")
            elif error.status == 401:
                raise InputError(
                    f"Kubernetes at {self.host} does not accept this token (401): {said}; run it again, or log in anew"
                ) from None
            elif error.status == 403 and "exceeded quota" in said:
                raise Away(f"namespace {namespace} has no room to {what}: {said}") from None
            elif error.status == 403:
                raise InputError(
                    f"Kubernetes at {self.host} does not let this account {what} in namespace {namespace} (403): "
                    f"{said}; apply the roles in manifests/"
                ) from None
            elif error.status == 404:
                raise Missing(said) from None
            elif error.status == 409:
                raise Conflict(said) from None
            else:
                raise InputError(f"Kubernetes at {self.host} refuses to {what} ({error.status}): {said}") from None
        except (HTTPError, ValueError) as error:  # no connection, a cut answer, or one that is not what was asked for
            transient.append(one_line(str(error)) or type(error).__name__)


def one_line(text: str) -> str:
    """What Kubernetes says, without line breaks and not endless."""
    return " ".join(text.split())[:400]


def _message(error: ApiException) -> str:
    """The words of the API's answer, which is a JSON Status if all is well."""
    try:
        return one_line(str(json.loads(error.body)["message"]))
    except (ValueError, KeyError, TypeError):
        return one_line(str(error.reason or ""))
