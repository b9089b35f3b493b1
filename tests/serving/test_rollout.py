"""Rollout by a Deployment: the API server is ours, the pods are real tritonservers on addresses of their own."""

import http.client
import json
import os
import re
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlites.errors import InputError
from mlites.recipe import Serving
from mlites.recipe.promotion import Promotion
from mlites.serving import rollout
from mlites.serving.channel import read_channel
from mlites.serving.promote import promote, rollback
from mlites.serving.prune import prune
from mlites.serving.sandbox import Sandbox, sandbox
from mlites.serving.server import Triton
from mlites.serving.steps import PromotionFailed
from mlites.stack import process, triton, triton_environment
from mlites.storage import Store
from tests.serving import planted

SERVING = Serving(promotion=Promotion(trial_seconds=0.1, shadow_seconds=0.1, watch_seconds=0.1, slower=50))
REPLICAS = 2


class Cluster:
    """A Deployment controller of a few lines: on a change it replaces pods one by one, each ready before the next."""

    def __init__(self, folder: Path, variables: dict[str, str], bucket: str) -> None:
        self.folder, self.bucket = folder, bucket
        self.server = triton_environment.prepare(lambda message: None)
        self.variables = triton.variables(
            self.server,
            {**{k: v for k, v in variables.items() if k.startswith("AWS_")}, "AWS_DEFAULT_REGION": "us-east-1"},
        )
        self.endpoint = variables["MLITES_S3_ENDPOINT"]
        triton.install_backends(folder, self.server)
        self.ports = {"http": 18000, "grpc": 18001, "metrics": 18002}
        self.revision, self.generation, self.observed = "", 1, 1
        self.pods: list[dict[str, Any]] = []
        self.addresses = (f"127.0.{one}.{two}" for one in range(7, 200) for two in range(2, 250))
        self.guard, self.changed = threading.Lock(), threading.Event()
        self.fewest = REPLICAS
        self.end = threading.Event()
        self.refuse = False
        self.busy = 0  # requests that get a 503
        self.spoil: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._control, daemon=True)
        self.thread.start()

    def deployment(self) -> dict[str, Any]:
        env = [{"name": "MLITES_REVISION", "value": self.revision}]
        with self.guard:
            new = [pod for pod in self.pods if pod["revision"] == self.revision]
            status = {
                "observedGeneration": self.observed,
                "replicas": len(self.pods),
                "updatedReplicas": len(new),
                "availableReplicas": sum(pod["ready"] for pod in self.pods),
                "unavailableReplicas": sum(not pod["ready"] for pod in self.pods),
            }
        return {
            "metadata": {"name": "triton", "namespace": "mlites", "generation": self.generation},
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": {"app": "triton"}},
                "template": {"spec": {"containers": [{"name": "triton", "env": env}]}},
            },
            "status": status,
        }

    def list_pods(self) -> dict[str, Any]:
        with self.guard:
            items = [
                {
                    "metadata": {"name": pod["mark"]},
                    "spec": {
                        "containers": [
                            {
                                "name": "triton",
                                "ports": [
                                    {"name": name, "containerPort": self.ports[name]} for name in ("http", "grpc")
                                ],
                            }
                        ]
                    },
                    "status": {
                        "podIP": pod["address"],
                        "conditions": [{"type": "Ready", "status": str(pod["ready"])}],
                    },
                }
                for pod in self.pods
            ]
        return {"items": items}

    def patch(self, body: dict[str, Any]) -> None:
        assert body["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        (container,) = body["spec"]["template"]["spec"]["containers"]
        assert container["name"] == "triton" and container["env"][0]["name"] == "MLITES_REVISION"
        self.revision = container["env"][0]["value"]
        self.generation += 1
        self.changed.set()

    def _control(self) -> None:
        try:
            self._reconcile()
        except BaseException:
            traceback.print_exc(file=(self.folder / "control.log").open("w"))
            raise

    def _reconcile(self) -> None:
        while not self.end.is_set():
            if not self.changed.wait(0.1):
                continue
            self.changed.clear()
            self.observed, revision = self.generation, self.revision
            while not self.changed.is_set() and not self.end.is_set():
                with self.guard:
                    old = [pod for pod in self.pods if pod["revision"] != revision]
                    new = [pod for pod in self.pods if pod["revision"] == revision]
                if len(new) < REPLICAS:
                    self._start(revision)
                elif not old:
                    break
                if old and (len(new) >= REPLICAS or sum(pod["ready"] for pod in self.pods) > REPLICAS):
                    with self.guard:
                        self.pods.remove(old[0])
                        self.fewest = min(self.fewest, sum(pod["ready"] for pod in self.pods))
                    process.stop(old[0]["mark"], 0)

    def _start(self, revision: str) -> None:
        pod = {"address": next(self.addresses), "revision": revision, "ready": False, "mark": f"pod:{uuid.uuid4().hex}"}
        place = f"s3://{self.endpoint}/{self.bucket}/{revision}"
        command = triton.command(self.folder, self.server, self.ports, place)
        command = [one.replace("address=127.0.0.1", f"address={pod['address']}") for one in command]
        command = [re.sub("(shm-region-prefix-name=).*", rf"\g<1>{pod['mark'][4:]}-", one) for one in command]
        with self.guard:
            self.pods.append(pod)
        pod["command"] = command
        if self.spoil:  # its image does not start
            self.spoil()
            self.spoil = None
            while not self.changed.wait(0.1) and not self.end.is_set():
                pass
            return
        self._run(pod)

    def restart(self, place: int) -> None:
        self._run(self.pods[place])

    def _run(self, pod: dict[str, Any]) -> None:
        process.start(pod["mark"], pod["command"], self.variables, self.folder / f"{pod['mark'][4:]}.log")
        revision = pod["revision"]
        name = revision.split("/")[1]
        deadline = time.monotonic() + 120
        while not self.changed.is_set() and not self.end.is_set() and time.monotonic() < deadline:
            if _is_ready(str(pod["address"]), name):
                with self.guard:
                    pod["ready"] = True
                return
            time.sleep(0.1)

    def close(self) -> None:
        self.end.set()
        self.thread.join()
        for pod in self.pods:
            process.stop(pod["mark"], 0)
            for path in Path("/dev/shm").glob(f"{pod['mark'][4:]}-*"):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "backends")


def _is_ready(address: str, model: str) -> bool:
    """What a readiness probe asks."""
    connection = http.client.HTTPConnection(address, 18000, timeout=2)
    try:
        connection.request("GET", f"/v2/models/{model}/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@pytest.fixture
def cluster(store: Store, seaweedfs: dict[str, str], tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(tmp_path, seaweedfs, f"mlites/{store.prefix}")
    yield one
    one.close()


@pytest.fixture
def api(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API server's address; MLITES_ROLLOUT and KUBECONFIG lead to it."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if cluster.refuse or ("/deployments/triton" not in self.path and "/pods" not in self.path):
                return self.send_error(403)
            if cluster.busy:
                cluster.busy -= 1
                return self.send_error(503)
            if self.command == "PATCH":
                assert self.headers["Content-Type"] == "application/strategic-merge-patch+json"
                cluster.patch(json.loads(body))
            content = json.dumps(cluster.list_pods() if "/pods" in self.path else cluster.deployment()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None

        do_GET = do_PATCH = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (cluster.folder / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(cluster.folder / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("MLITES_ROLLOUT", "mlites/triton")
    yield url
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """One sandbox for all tests here."""
    with sandbox({}) as one:
        yield one


def test_pods_are_replaced_one_by_one_and_each_is_asked(
    store: Store, cluster: Cluster, api: str, tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "LOAD_SECONDS", 100.0)
    digests = [planted.good(store, "m", tmp_path, seed, SERVING).digest for seed in (1, 2)]

    def go(digest: str) -> Any:
        return promote(store, "m", digest, triton=Triton("http://unused", "unused:1"), trial=lambda: nullcontext(box))

    assert go(digests[0]).pointer.version == 1  # the first pods come with the first release
    assert [one.ready_versions() for one in rollout_pods()] == [{"m": [1]}, {"m": [1]}]
    cluster.fewest = REPLICAS
    cluster.busy = 2  # no reason to give up
    promoted = go(digests[1])
    assert (promoted.pointer.version, promoted.previous_version) == (2, 1)
    assert [one.ready_versions() for one in rollout_pods()] == [{"m": [1, 2]}, {"m": [1, 2]}]
    assert cluster.fewest == REPLICAS  # never fewer pods ready than before

    # a pod that starts later serves the revision of its Deployment, and nothing else
    process.stop(cluster.pods[0]["mark"], 0)
    cluster.restart(0)
    assert rollout_pods()[0].ready_versions() == {"m": [1, 2]}

    # the way back: callers at once, then pods without the release that was taken back
    back = rollback(store, "m", triton=Triton("http://unused", "unused:1"))
    assert (back.pointer.digest, back.pointer.version) == (digests[0], 1)
    assert [one.ready_versions() for one in rollout_pods()] == [{"m": [1]}, {"m": [1]}]

    # a revision whose pods do not become ready: the former one comes back
    cluster.spoil = lambda: monkeypatch.setattr(rollout, "LOAD_SECONDS", 100.0)
    monkeypatch.setattr(rollout, "LOAD_SECONDS", 8.0)
    with pytest.raises(PromotionFailed, match=r"revisions/m/4 to be read, after \d+ s; version 1 serves as before"):
        go(digests[1])
    pointer = read_channel(store, "m", "production")
    assert pointer is not None and pointer.digest == digests[0]
    assert [one.ready_versions() for one in rollout_pods()] == [{"m": [1]}, {"m": [1]}]
    prune(store, "m", 1, triton=Triton("http://unused", "unused:1"))
    assert {key.split("/")[2] for key in store.keys("revisions/m/")} == {cluster.revision.rsplit("/", 1)[1]}


def rollout_pods() -> list[Triton]:
    """What is ready now."""
    found = rollout.Deployment.from_environment(os.environ)
    assert found is not None
    return found.pods()


def test_what_is_wrong_with_the_cluster_is_told(
    store: Store, cluster: Cluster, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("triton", "a/b/c", "/b"):
        with pytest.raises(InputError, match=r"MLITES_ROLLOUT must be namespace/deployment, got"):
            rollout.Deployment.from_environment({"MLITES_ROLLOUT": value})
    cluster.refuse = True
    refused = r"MLITES_ROLLOUT mlites/triton: Kubernetes at \S+ does not let this account read the deployment .*\(403\)"
    with pytest.raises(InputError, match=refused):
        promote(store, "m", "0" * 64, triton=Triton("http://unused", "unused:1"))
    for variable, value in (("KUBECONFIG", "/nowhere"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")):
        monkeypatch.setenv(variable, value)
        with pytest.raises(InputError, match=r"MLITES_ROLLOUT needs Kubernetes' API: .* and /nowhere names no"):
            rollout.Deployment.from_environment({"MLITES_ROLLOUT": "a/b"})
