"""TrainJobs in Kubernetes: create, look after, show the log of, delete."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from mlites.errors import InputError, WorkerFailed
from mlites.kubernetes_api import TIMEOUT_SECONDS, Away, Conflict, Kubernetes, Missing, one_line
from mlites.training.job import LOST_WORDS

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
GONE_SECONDS = 180.0  # that an earlier job may take to end
LAST_PATIENCE_SECONDS = 15.0  # on the way out, as a pod that is told to end has 30 s
POLL_SECONDS = 1.0
# why a container may wait for good
TROUBLES = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}


@dataclass(frozen=True)
class Ended:
    """A worker's container that ended badly.

    Attributes:
        index: number of the worker.
        pod: its name.
        reason: Kubernetes' word, such as OOMKilled.
        code: exit code.
        words: its last, where it had some.
    """

    index: int
    pod: str
    reason: str
    code: int
    words: str = ""


@dataclass(frozen=True)
class Finding:
    """How a TrainJob stands.

    Attributes:
        complete: all workers ended well.
        failed: the reason of its failure, or None.
        message: of that failure.
        suspended: it waits for a queue.
        running: pods that run or have ended well.
        waiting: why a pod does not run, empty where nothing is known.
        trouble: such that waiting will hardly help.
        ended: the worker that failed first, as far as is known.
    """

    complete: bool
    failed: str | None
    message: str
    suspended: bool
    running: int
    waiting: str
    trouble: bool
    ended: Ended | None


class Cluster:
    """The TrainJobs of one namespace, as this pod's service account sees them; outside a pod, as KUBECONFIG says."""

    def __init__(self, namespace: str | None) -> None:
        """Read the credentials.

        Raises:
            InputError: there are none.
        """
        self._api = Kubernetes("training in a cluster")
        self.namespace = namespace or self._api.namespace
        self._log = _Log()

    def create(self, manifest: dict[str, Any]) -> None:
        """Create a job, or take over the one of this name that an earlier try of the step left at work.

        Raises:
            InputError: the cluster refuses it, and will again.
            WorkerFailed: quota, or the API does not answer.
        """
        name = manifest["metadata"]["name"]
        for _ in range(3):
            try:
                self._ask("create a TrainJob", self._api.objects.create_namespaced_custom_object, body=manifest)
                return
            except Missing as error:
                raise InputError(
                    f"Kubernetes at {self._api.host} has no TrainJobs, or no namespace {self.namespace} (404): "
                    f"{error}; install Kubeflow Trainer 2.2 or newer"
                ) from None
            except Conflict:
                found = self._get(name)
            if found and not found["metadata"].get("deletionTimestamp") and not _condition(found, "Failed"):
                return
            self.delete(name)
            self._until_gone(name)
        raise WorkerFailed(f"TrainJob {name}: another of this name comes back again and again; delete it")

    def look(self, name: str) -> Finding:
        """How a job stands.

        Raises:
            WorkerFailed: it is gone, or the API does not answer.
        """
        job = self._get(name)
        if job is None:
            raise WorkerFailed(f"TrainJob {name} was deleted while it ran; run again to go on from the last checkpoint")
        failed = _condition(job, "Failed")
        pods = self._pods(name)
        waiting, trouble = _waiting(pods)
        return Finding(
            complete=_condition(job, "Complete") is not None,
            failed=str(failed.get("reason") or "Failed") if failed else None,
            message=one_line(failed.get("message", "")) if failed else "",
            suspended=_condition(job, "Suspended") is not None,
            running=sum(pod.status.phase in ("Running", "Succeeded") for pod in pods),
            waiting=waiting or (self._refused(name) if not pods else ""),
            trouble=trouble,
            ended=_ended(pods),
        )

    def show_log(self, name: str) -> None:
        """Print what the first worker has said since the last call; a log that cannot be read now is read later."""
        for pod in self._pods(name)[:1]:
            if pod.status.phase == "Pending":
                return
            try:
                answer = self._api.core.read_namespaced_pod_log(
                    pod.metadata.name,
                    self.namespace,
                    container=CONTAINER,
                    timestamps=True,
                    since_seconds=self._log.since_seconds(),
                    _preload_content=False,
                    _request_timeout=TIMEOUT_SECONDS,
                )
            except (ApiException, HTTPError):
                return
            self._log.show(answer.data.decode(errors="replace"))

    def delete(self, name: str) -> None:
        """Delete a job with its pods; where that fails, say so, as more cannot be done."""
        try:
            self._ask(
                "delete a TrainJob",
                self._api.objects.delete_namespaced_custom_object,
                name=name,
                body=client.V1DeleteOptions(propagation_policy="Foreground"),
                patience_s=LAST_PATIENCE_SECONDS,
            )
        except Missing:
            return
        except (InputError, WorkerFailed) as error:
            print(f"TrainJob {name} is left in namespace {self.namespace}: {error}", flush=True)

    def _get(self, name: str) -> dict[str, Any] | None:
        try:
            found = self._ask("read a TrainJob", self._api.objects.get_namespaced_custom_object, name=name)
        except Missing:
            return None
        return found  # type: ignore[no-any-return]

    def _until_gone(self, name: str) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        while self._get(name) is not None:
            if time.monotonic() > deadline:
                raise WorkerFailed(f"TrainJob {name}: an earlier one does not end; delete it and run again")
            time.sleep(POLL_SECONDS)

    def _pods(self, name: str) -> list[Any]:
        """The job's pods, the first worker's first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={CONTAINER}"
        found = self._patiently("list pods", self._api.core.list_namespaced_pod, label_selector=selector)
        return sorted(found.items, key=lambda pod: (_index(pod), -pod.metadata.creation_timestamp.timestamp()))

    def _refused(self, name: str) -> str:
        """Why the cluster makes no pods for a job, from its events, where this service account may read them."""
        try:
            found = self._api.core.list_namespaced_event(
                self.namespace, field_selector="reason=FailedCreate", _request_timeout=TIMEOUT_SECONDS
            )
        except (ApiException, HTTPError):
            return ""
        said = [event.message or "" for event in found.items if event.involved_object.name.startswith(name)]
        return one_line(said[-1]) if said else ""

    def _ask(self, what: str, call: Callable[..., Any], **arguments: Any) -> Any:
        """Call the API for TrainJobs."""
        return self._patiently(what, call, group=GROUP, version=VERSION, plural=PLURAL, **arguments)

    def _patiently(self, what: str, call: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return self._api.ask(what, call, namespace=self.namespace, **arguments)
        except Away as error:
            raise WorkerFailed(str(error)) from None


class _Log:
    """What of a pod's log was shown; lines begin with the time at which they were written."""

    def __init__(self) -> None:
        self._last = ""
        self._read_at: float | None = None

    def since_seconds(self) -> int | None:
        """How much of the log to ask for, generously: clocks differ."""
        return None if self._read_at is None else int(time.monotonic() - self._read_at) + 60

    def show(self, text: str) -> None:
        """Print the lines that are new."""
        for line in text.splitlines():
            stamp, _, words = line.partition(" ")
            if stamp > self._last:
                print(words, flush=True)
                self._last = stamp
        self._read_at = time.monotonic()


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    conditions: list[dict[str, Any]] = job.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind and one.get("status") == "True"), None)


def _index(pod: Any) -> int:
    return int((pod.metadata.labels or {}).get(INDEX_LABEL, 0))


def _waiting(pods: list[Any]) -> tuple[str, bool]:
    """Why pods do not run, the gravest first, and whether waiting will hardly help."""
    said = ""
    for pod in pods:
        for status in pod.status.container_statuses or []:
            state = status.state.waiting if status.state else None
            if state and state.reason in TROUBLES:
                return f"pod {pod.metadata.name}: {state.reason}: {one_line(state.message or '')}", True
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                said = f"pod {pod.metadata.name}: {condition.reason}: {one_line(condition.message or '')}"
    return said, False


def _ended(pods: list[Any]) -> Ended | None:
    """The worker that failed first and not because it lost another."""
    found = []
    for pod in pods:
        for status in pod.status.container_statuses or []:
            for state in (status.state, status.last_state):
                ended = state.terminated if state else None
                if ended and ended.exit_code and ended.message != LOST_WORDS:
                    when, words = (
                        ended.finished_at.timestamp() if ended.finished_at else 0.0,
                        one_line(ended.message or ""),
                    )
                    found.append((when, Ended(_index(pod), pod.metadata.name, ended.reason, ended.exit_code, words)))
        if pod.status.reason == "Evicted":
            found.append((0.0, Ended(_index(pod), pod.metadata.name, "Evicted", 137)))
    return min(found, key=lambda one: one[0])[1] if found else None
