"""Rollout: a Kubernetes Deployment whose pods each serve an immutable revision of the repository.

``revisions/<model in Triton>/<number>/`` is a whole model repository that is written once: the version in service
beside the one before, and config.pbtxt. The Deployment's container "triton" reads the one that its variable
MLITES_REVISION names, so that a pod that starts at any time serves what its Deployment says. Kubernetes replaces the
pods one by one, none before the next is ready and warm; then every one is asked.

MLITES_ROLLOUT names the Deployment: ``namespace/name``. A pod of the cluster uses its service account, others the
user's kubeconfig.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlites.errors import InputError
from mlites.serving.repository import model_key, versions_in
from mlites.serving.server import LOAD_SECONDS, Triton, TritonRefused
from mlites.serving.versions import CONFIG, Place
from mlites.storage import MANIFEST, Store

if TYPE_CHECKING:
    from mlites.kubernetes_api import Kubernetes

CONTAINER, VARIABLE = "triton", "MLITES_REVISION"
HTTP, GRPC = "http", "grpc"  # names of the container's ports
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 30.0  # with a cluster that does not answer


@dataclass(frozen=True)
class Deployment:
    """A Deployment of Triton.

    Attributes:
        namespace: of it.
        name: of it.
        api: of its cluster.
    """

    namespace: str
    name: str
    api: "Kubernetes" = field(repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Deployment | None":
        """What MLITES_ROLLOUT names, None where it is not set.

        Raises:
            InputError: not ``namespace/name``, or there is no way to the cluster.
        """
        value = environment.get("MLITES_ROLLOUT", "")
        if not value:
            return None
        namespace, _, name = value.partition("/")
        if not namespace or not name or "/" in name:
            raise InputError(f"MLITES_ROLLOUT must be namespace/deployment, got {value[:80]!r}")
        from mlites.kubernetes_api import Kubernetes  # 0.5 s, that few need

        return cls(namespace, name, Kubernetes("MLITES_ROLLOUT"))

    def show(self, revision: str) -> None:
        """Have the pods replaced by such that read a revision, and wait until all are.

        Raises:
            TritonRefused: the cluster refuses, or the pods do not become ready in time; the former ones serve on.
        """
        container = {"name": CONTAINER, "env": [{"name": VARIABLE, "value": revision}]}
        body = {
            "spec": {
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"spec": {"containers": [container]}},
            }
        }
        changed = self._ask(
            "change the deployment", self.api.apps.patch_namespaced_deployment, name=self.name, body=body
        )
        deadline = time.monotonic() + LOAD_SECONDS
        while True:
            now = self._ask("read the deployment", self.api.apps.read_namespaced_deployment_status, name=self.name)
            if (now.status.observed_generation or 0) >= changed.metadata.generation and _is_complete(now):
                return
            if time.monotonic() > deadline:
                raise TritonRefused(
                    f"deployment {self.namespace}/{self.name}: {now.status.available_replicas or 0} of "
                    f"{now.spec.replicas} pods are ready, with {revision} to be read, after {LOAD_SECONDS:.0f} s"
                )
            time.sleep(POLL_SECONDS)

    def revision(self) -> str:
        """What its pods read."""
        found = self._ask("read the deployment", self.api.apps.read_namespaced_deployment, name=self.name)
        for container in found.spec.template.spec.containers:
            for variable in container.env or []:
                if container.name == CONTAINER and variable.name == VARIABLE:
                    return str(variable.value)
        return ""

    def pods(self) -> list[Triton]:
        """The server in each pod that is ready and is to stay."""
        found = self._ask("read the deployment", self.api.apps.read_namespaced_deployment, name=self.name)
        labels = ",".join(f"{key}={value}" for key, value in found.spec.selector.match_labels.items())
        pods = self._ask("list pods", self.api.core.list_namespaced_pod, label_selector=labels).items
        servers = []
        for pod in pods:
            ready = any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or [])
            if not ready or pod.metadata.deletion_timestamp:
                continue
            (container,) = (one for one in pod.spec.containers if one.name == CONTAINER)
            ports = {one.name: one.container_port for one in container.ports}
            address = pod.status.pod_ip
            servers.append(Triton(f"http://{address}:{ports[HTTP]}", f"{address}:{ports[GRPC]}"))
        return servers

    def _ask(self, what: str, call: Callable[..., Any], **arguments: Any) -> Any:
        """Ask for it; whatever the cluster has against it, a promotion has to go back."""
        from mlites.kubernetes_api import Away, Conflict, Missing

        try:
            return self.api.ask(what, call, patience_s=PATIENCE_SECONDS, namespace=self.namespace, **arguments)
        except (Away, Conflict, InputError) as error:
            raise TritonRefused(str(error)) from None
        except Missing as error:
            raise TritonRefused(f"Kubernetes at {self.api.host} finds nothing to {what} (404): {error}") from None


@dataclass(frozen=True)
class RolloutPlace(Place):
    """A model that is served by the pods of a Deployment."""

    deployment: Deployment

    def check(self) -> None:
        """Make sure that the cluster answers; before the first release no pod does."""
        try:
            self.deployment.revision()
        except TritonRefused as error:
            raise InputError(f"MLITES_ROLLOUT {self.deployment.namespace}/{self.deployment.name}: {error}") from None

    def each(self) -> list[Triton]:
        """The server in each pod."""
        return self.deployment.pods()

    def load(self, text: str) -> None:
        """Write the next revision with what a configuration names, and have all pods read it."""
        number = 1 + max([0, *self._revisions()])
        prefix = f"revisions/{self.name}/{number}"
        for version in versions_in(text):
            for file in ("model.onnx", "model.json"):
                key = f"{prefix}/{self.name}/{version}/{file}"
                self.store.copy(model_key(self.name, version, file), key)
                self.store.verify(key, *self._promised(version, file))
        self.store.put(f"{prefix}/{self.name}/{CONFIG}", text.encode(), if_absent=True)
        self.deployment.show(prefix)

    def complete(self, text: str) -> None:
        """Nothing to do: a pod that starts reads the revision of its Deployment."""

    def remove(self) -> None:
        """Take the model out of service: an empty revision, which no pod becomes ready with, would not end."""
        self.store.delete(model_key(self.name, CONFIG))

    def prune_revisions(self) -> list[int]:
        """Remove all revisions but the one that the pods read."""
        shown = self.deployment.revision().rsplit("/", 1)[-1]
        gone = [one for one in self._revisions() if str(one) != shown]
        for number in gone:
            self.store.delete_all(f"revisions/{self.name}/{number}/")
        return gone

    def _revisions(self) -> list[int]:
        keys = self.store.keys(f"revisions/{self.name}/")
        return sorted({int(part) for key in keys if (part := key.split("/")[2]).isdecimal()})

    def _promised(self, version: int, file: str) -> tuple[str, int]:
        entry = self.store.get_json(model_key(self.name, version, MANIFEST))["files"][file]
        return entry["sha256"], entry["size"]


def place_of(store: Store, name: str, triton: Triton, environment: Mapping[str, str]) -> Place:
    """Where a model is served: by the Deployment that MLITES_ROLLOUT names, or by a Triton that loads on request."""
    deployment = Deployment.from_environment(environment)
    return RolloutPlace(store, name, triton, deployment) if deployment else Place(store, name, triton)


def _is_complete(found: Any) -> bool:
    """Whether all pods are of the last revision and ready, and no other is left."""
    wanted, status = found.spec.replicas, found.status
    return bool(
        status.updated_replicas == wanted
        and status.replicas == wanted
        and status.available_replicas == wanted
        and not status.unavailable_replicas
    )
