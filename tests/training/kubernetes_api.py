"""A server that speaks the part of Kubernetes' REST API that TrainJobs need, keeps their state, and runs their pods.

Jobs are checked against the models of Kubeflow Trainer's API. What a kubelet would do is a function of the test: run
the container's command as a process of this machine, or play a pod that never starts. Faults come where a test asks.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

Document = dict[str, Any]
JOBS = re.compile(
    r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/(?P<namespace>[^/]+)/trainjobs(?:/(?P<name>[^/]+))?"
)
PODS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods(?:/(?P<name>[^/]+)/log)?")
EVENTS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/events")
TOKEN = "a-token-of-this-test"


@dataclass
class Fault:
    """What a request meets in place of its answer: a status with a message, or a connection that fails in a way."""

    method: str
    path: str
    kind: int | str
    times: int
    message: str = ""


@dataclass
class Pod:
    """A pod as the API tells of it, its log and its process."""

    name: str
    index: int
    job: str
    document: Document
    log: list[tuple[str, str]] = field(default_factory=list)
    process: "subprocess.Popen[str] | None" = None

    def set_state(self, phase: str, state: Document, *, message: str = "") -> None:
        status = {"phase": phase, "containerStatuses": [_container_status(state)]}
        self.document["status"] = status | ({"message": message} if message else {})

    def end(self, code: int, reason: str = "", words: str = "") -> None:
        """The container ended."""
        terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "finishedAt": now(),
        }
        if words:
            terminated["message"] = words
        self.set_state("Failed" if code else "Succeeded", {"terminated": terminated})

    def say(self, line: str) -> None:
        self.log.append((datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z"), line))


class KubernetesApi:
    """The server and its state; ``kubelet`` is given each new job's pods, in a thread, and plays the cluster."""

    def __init__(self, folder: Path, kubelet: Callable[["KubernetesApi", Document, list[Pod]], None]) -> None:
        self.folder, self.kubelet = folder, kubelet
        self.jobs: dict[str, Document] = {}
        self.pods: dict[str, Pod] = {}
        self.events: list[Document] = []
        self.created: list[Document] = []
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.secrets: dict[str, dict[str, str]] = {}
        self.kubelets: list[threading.Thread] = []
        self.lock = threading.RLock()
        self.port = 0

    def fail(self, method: str, path: str, kind: int | str, times: int = 10**6, message: str = "") -> None:
        """Let the next requests of a kind fail."""
        self.faults.append(Fault(method, path, kind, times, message))

    def condition(self, name: str, kind: str, reason: str = "", message: str = "") -> None:
        """Set a condition of a job, as the controller does."""
        with self.lock:
            if name in self.jobs:
                entry = {"type": kind, "status": "True", "reason": reason or kind, "message": message}
                entry["lastTransitionTime"] = now()
                self.jobs[name].setdefault("status", {}).setdefault("conditions", []).append(entry)

    def event(self, name: str, message: str) -> None:
        """Record a warning about an object."""
        self.events.append(
            {
                "metadata": {"name": uuid.uuid4().hex},
                "involvedObject": {"kind": "Job", "name": name},
                "reason": "FailedCreate",
                "type": "Warning",
                "message": message,
            }
        )

    def write_kubeconfig(self) -> Path:
        """A file for KUBECONFIG that leads here."""
        path = self.folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "team"}}],
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def add_pod(self, job: str, index: int) -> Pod:
        """A pod of a job, as JobSet names and labels it."""
        name = f"{job}-node-0-{index}-{uuid.uuid4().hex[:5]}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        metadata = {"name": name, "labels": labels, "creationTimestamp": now()}
        pod = Pod(name, index, job, {"metadata": metadata, "spec": {"containers": [{"name": "node"}]}})
        pod.set_state("Pending", {"waiting": {"reason": "ContainerCreating"}})
        with self.lock:
            self.pods[name] = pod
        return pod

    # what the requests do

    def create(self, namespace: str, job: Document) -> tuple[int, Document]:
        read = TrainerV1alpha1TrainJob.from_dict(job)
        assert read is not None
        lost = json.loads(json.dumps(read.to_dict(), default=str))
        if lost != job:  # the models drop what they do not know
            return 422, _status(422, "Invalid", "the TrainJob has fields that its schema does not know")
        name = job["metadata"]["name"]
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
            return 422, _status(422, "Invalid", "metadata.name must match RFC 1035 DNS label format")
        with self.lock:
            if name in self.jobs:
                return 409, _status(409, "AlreadyExists", f'trainjobs "{name}" already exists')
            job["metadata"] |= {"namespace": namespace, "uid": uuid.uuid4().hex, "creationTimestamp": now()}
            self.jobs[name] = job
            self.created.append(job)
        pods = [self.add_pod(name, index) for index in range(job["spec"]["trainer"]["numNodes"])]
        self.kubelets.append(threading.Thread(target=self.kubelet, args=(self, job, pods)))
        self.kubelets[-1].start()
        return 201, job

    def delete(self, name: str) -> tuple[int, Document]:
        with self.lock:
            if name not in self.jobs:
                return 404, _status(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
            del self.jobs[name]
            gone = [pod for pod in self.pods.values() if pod.job == name]
            for pod in gone:
                del self.pods[pod.name]
        for pod in gone:
            _kill(pod)
        return 200, _status(200, "Success", "")

    def list_pods(self, selector: str) -> Document:
        wanted = dict(part.split("=") for part in selector.split(","))
        with self.lock:
            found = [
                pod.document
                for pod in self.pods.values()
                if wanted.items() <= pod.document["metadata"]["labels"].items()
            ]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found}

    def log_of(self, name: str, query: dict[str, list[str]]) -> str:
        lines = list(self.pods[name].log)
        if seconds := query.get("sinceSeconds"):
            since = datetime.fromtimestamp(time.time() - int(seconds[0]), UTC).strftime("%Y-%m-%dT%H:%M:%S")
            lines = [line for line in lines if line[0] >= since]
        return "".join(f"{stamp} {words}\n" if "timestamps" in query else f"{words}\n" for stamp, words in lines)


@contextmanager
def serve(api: KubernetesApi) -> Iterator[KubernetesApi]:
    """Answer on a free port of this machine while this lasts; no pod outlives it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for pod in list(api.pods.values()):
            _kill(pod)
        for kubelet in api.kubelets:
            kubelet.join()


def run_processes(api: KubernetesApi, job: Document, pods: list[Pod], *, tries: int = 1) -> None:
    """A kubelet that runs each pod's command here, with torchrun's variables as Kubeflow Trainer sets them."""
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for attempt in range(1, tries + 1):
        threads = [threading.Thread(target=_run_pod, args=(api, trainer, pod, torchrun)) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        phases = {pod.document["status"]["phase"] for pod in pods}
        if phases == {"Succeeded"}:
            api.condition(name, "Complete", "AllJobsCompleted", "jobset completed successfully")
        elif attempt == tries:
            words = f"jobset failed due to one or more job failures (first failed job: {name}-node-0)"
            api.condition(name, "Failed", "FailedJobs", words)
        elif name in api.jobs:
            with api.lock:
                for pod in pods:
                    api.pods.pop(pod.name, None)
            pods = [api.add_pod(name, pod.index) for pod in pods]
            continue
        return


def _run_pod(api: KubernetesApi, trainer: Document, pod: Pod, torchrun: dict[str, str]) -> None:
    tmp = api.folder / pod.name
    (tmp / "home").mkdir(parents=True)
    variables = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp), "PET_NODE_RANK": str(pod.index), **torchrun}
    for entry in trainer["env"]:
        if "value" in entry:
            variables[entry["name"]] = entry["value"]
            continue
        source = next(iter(entry["valueFrom"].values()))
        try:
            variables[entry["name"]] = api.secrets[source["name"]][source["key"]]
        except KeyError:
            message = f'couldn\'t find key {source["key"]} in "{source["name"]}"'
            pod.set_state("Pending", {"waiting": {"reason": "CreateContainerConfigError", "message": message}})
            return
    variables |= {"HOME": str(tmp / "home"), "MLITES_LAST_WORDS": str(tmp / "last-words")}
    command = [*trainer["command"], *trainer["args"]]
    assert command[0] == "python3"
    pod.process = subprocess.Popen(
        [sys.executable, *command[1:]],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    pod.set_state("Running", {"running": {"startedAt": now()}})
    assert pod.process.stdout is not None
    with pod.process.stdout:
        for line in pod.process.stdout:
            pod.say(line.rstrip("\n"))
    code = pod.process.wait()
    words = tmp / "last-words"
    said = words.read_text() if words.exists() else ""
    pod.end(128 - code if code < 0 else code, "OOMKilled" if code == -signal.SIGKILL else "", said)


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the tests' output clean."""

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.api.requests.append(f"{method} {url.path}")
        for fault in self.api.faults:
            if fault.times and fault.method == method and fault.path in url.path:
                fault.times -= 1
                self._fail(fault)
                return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, _status(401, "Unauthorized", "Unauthorized"))
            return
        query = parse_qs(url.query)
        if found := JOBS.fullmatch(url.path):
            self._send(*self._job(method, found["namespace"], found["name"], body))
        elif (found := PODS.fullmatch(url.path)) and found["name"]:
            if found["name"] in self.api.pods:
                self._send(200, self.api.log_of(found["name"], query))
            else:
                self._send(404, _status(404, "NotFound", "pod not found"))
        elif PODS.fullmatch(url.path):
            self._send(200, self.api.list_pods(query["labelSelector"][0]))
        elif EVENTS.fullmatch(url.path):
            reason = query["fieldSelector"][0].removeprefix("reason=")
            items = [event for event in self.api.events if event["reason"] == reason]
            self._send(200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": items})
        else:
            self._send(404, _status(404, "NotFound", "the server could not find the requested resource"))

    def _job(self, method: str, namespace: str, name: str | None, body: bytes) -> tuple[int, Document]:
        if method == "POST":
            return self.api.create(namespace, json.loads(body))
        assert name is not None
        if method == "DELETE":
            return self.api.delete(name)
        if name not in self.api.jobs:
            return 404, _status(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
        return 200, self.api.jobs[name]

    def _fail(self, fault: Fault) -> None:
        if isinstance(fault.kind, int):
            self._send(fault.kind, _status(fault.kind, "Fault", fault.message))
        elif fault.kind == "no JSON":
            self._send(200, "<html>a proxy's page</html>")
        elif fault.kind == "truncated":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"kind": "Trai')
            self.close_connection = True
        else:
            assert fault.kind == "reset"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True

    def _send(self, code: int, answer: Document | str) -> None:
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _container_status(state: Document) -> Document:
    return {
        "name": "node",
        "ready": "running" in state,
        "restartCount": 0,
        "image": "",
        "imageID": "",
        "state": state,
    }


def _status(code: int, reason: str, message: str) -> Document:
    kind = "Success" if code < 400 else "Failure"
    return {"kind": "Status", "apiVersion": "v1", "status": kind, "code": code, "reason": reason, "message": message}


def _kill(pod: Pod) -> None:
    if pod.process is not None and pod.process.poll() is None:
        os.killpg(pod.process.pid, signal.SIGKILL)
        pod.process.wait()
