"""A TrainJob from its creation to its model, over a server that speaks Kubernetes' API, with every fault on the way."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset
from mlites.errors import InputError, WorkerFailed
from mlites.models.card import read_card
from mlites.recipe import Teacher
from mlites.storage import Store
from mlites.training.job import Job, read_bytes, split
from mlites.training.train_job import JobSettings, train_in_cluster
from mlites.training.train_job import train_job as manifest
from tests.training.conftest import Kubelet
from tests.training.kubernetes_api import Document, KubernetesApi, Pod

SETTINGS = JobSettings(image="registry/train@sha256:12", cpu="1", start_seconds=60)
TEACHER = Teacher.model_validate(
    {
        "architecture": {"family": "resnet", "depth": 8, "width": 4},
        "training": {"epochs": 4, "batch_size": 32, "precision": "fp32", "augmentation": ["crop"]},
        "workers": 2,
    }
)
Start = Callable[[Kubelet], KubernetesApi]


@pytest.fixture
def trained(dataset: Dataset, tmp_path: Path) -> Path:
    """A model folder, as a job would leave it."""
    options = {"architecture": {"family": "mlp", "hidden": [4]}, "training": {"epochs": 1, "precision": "fp32"}}
    train_teacher(Teacher.model_validate(options), dataset, 0, tmp_path / "trained")
    return tmp_path / "trained"


def leave(model: Path, api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
    """A kubelet whose pods say something and leave a ready model."""
    for pod in pods:
        pod.set_state("Running", {"running": {}})
        pod.say(f"epoch 1/1 of {pod.index}")
    time.sleep(0.1)
    pods[0].say("epoch 2/1")
    told = Job.read(job["spec"]["trainer"]["args"][-1])
    store, key = split(told.model)
    store.put_folder(key, model)
    for pod in pods:
        pod.end(0)
    api.condition(job["metadata"]["name"], "Complete")


def start(s3: Store, dataset: Dataset, folder: Path, settings: JobSettings = SETTINGS, **more: Any) -> Any:
    return train_in_cluster(settings, TEACHER, dataset, 0, folder / "model", more.get("given"), s3.uri)


def test_manifest_is_a_train_job_of_the_api_and_names_no_secret_value(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "KFP_POD_NAME": "step-1",
        "KFP_POD_UID": "1234",
        "MLITES_TRUSTED_FACTORIES": "nets:build",
        "AWS_SECRET_ACCESS_KEY": "never",
    }
    settings = JobSettings(
        image="train@sha256:12",
        cpu="1500m",
        gpus=1,
        node_selector={"kind": "gpu"},
        tolerations=({"key": "gpu", "operator": "Exists"},),
    )
    made = manifest("mlites-1", settings, 3, "s3://bucket", "s3://bucket/training/1/job.json", environment)
    read = TrainerV1alpha1TrainJob.from_dict(made)
    assert read is not None and json.loads(json.dumps(read.to_dict(), default=str)) == json.loads(json.dumps(made))
    assert "never" not in json.dumps(made)
    spec, metadata = made["spec"], made["metadata"]
    assert metadata["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "step-1", "uid": "1234"}]
    trainer = spec["trainer"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"} and (trainer["numNodes"], trainer["numProcPerNode"]) == (
        3,
        1,
    )
    assert trainer["command"] + trainer["args"][:2] == [
        *("python3", "-m", "torch.distributed.run"),
        *("-m", "mlites.training.worker"),
    ]
    variables = {entry["name"]: entry for entry in trainer["env"]}
    assert not any(name.startswith("PET_") for name in variables)  # Trainer's own
    assert variables["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "mlites-s3"
    assert (
        variables["OMP_NUM_THREADS"]["value"] == "1" and variables["MLITES_TRUSTED_FACTORIES"]["value"] == "nets:build"
    )
    resources = trainer["resourcesPerNode"]
    assert resources["requests"] == resources["limits"] == {"cpu": "1500m", "memory": "4Gi", "nvidia.com/gpu": "1"}


def test_pods_meet_the_restricted_standard_with_a_read_only_root() -> None:
    made = manifest("mlites-1", SETTINGS, 2, "s3://bucket", "s3://bucket/job.json", {})
    (patch,) = made["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert node["name"] == container["name"] == "node"
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}] and pod["volumes"][0]["emptyDir"] == {}
    written = [entry["value"] for entry in made["spec"]["trainer"]["env"] if entry["name"] in ("HOME", "MLITES_HOME")]
    assert all(path.startswith("/tmp/") for path in written)


def test_model_is_fetched_the_log_shown_once_and_the_job_deleted(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = kubernetes(partial(leave, trained))
    card = start(s3, dataset, tmp_path)
    assert card.digest == read_card(trained).digest == read_card(tmp_path / "model").digest
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["epoch 1/1 of 0", "epoch 2/1"] and lines[-3].startswith("TrainJob mlites-")
    assert api.jobs == {} and api.created[0]["metadata"]["namespace"] == "team"
    assert not s3.keys("training/")


def test_train_teacher_takes_the_cluster_where_the_variable_says_so(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = kubernetes(partial(leave, trained))
    monkeypatch.setenv("MLITES_TRAIN_JOB", '{"image": "train:1", "namespace": "elsewhere", "memory": "1Gi"}')
    train_teacher(TEACHER, dataset, 0, tmp_path / "model", store=s3.uri)
    assert api.created[0]["metadata"]["namespace"] == "elsewhere"
    with pytest.raises(InputError, match="MLITES_TRAIN_JOB is set, but no store"):
        train_teacher(TEACHER, dataset, 0, tmp_path / "model")
    monkeypatch.setenv("MLITES_TRAIN_JOB", '{"image": "train:1", "memory": "much"}')
    with pytest.raises(InputError, match=r"MLITES_TRAIN_JOB: memory: String should match.*compile the pipeline again"):
        train_teacher(TEACHER, dataset, 0, tmp_path / "model", store=s3.uri)


def test_users_weights_and_folders_reach_the_workers(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        given = Job.read(job["spec"]["trainer"]["args"][-1]).given
        assert given is not None
        told.append(given)
        leave(trained, api, job, pods)

    kubernetes(kubelet)
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    start(s3, dataset, tmp_path, given=tmp_path / "mine.safetensors")
    start(s3, dataset, tmp_path, given=trained)
    assert read_bytes(told[0]) == b"weights"
    store, key = split(told[1])
    store.get_folder(key, tmp_path / "folder")
    assert read_card(tmp_path / "folder") == read_card(trained)


@pytest.mark.parametrize("kind", [500, 503, 429, "reset", "truncated", "no JSON"])
@pytest.mark.parametrize(("method", "path"), [("POST", "trainjobs"), ("GET", "trainjobs"), ("GET", "/pods")])
def test_faults_that_pass_do_no_harm(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path, method: str, path: str, kind: Any
) -> None:
    api = kubernetes(partial(leave, trained))
    api.fail(method, path, kind, times=2)
    start(s3, dataset, tmp_path)
    assert api.jobs == {} and len(api.created) == 1


@pytest.mark.parametrize(
    ("method", "status", "said", "error", "message"),
    [
        ("POST", 401, "Unauthorized", InputError, r"does not accept this token \(401\): Unauthorized"),
        (
            "POST",
            403,
            'trainjobs is forbidden: User "x" cannot create',
            InputError,
            r"does not let this account create a TrainJob in namespace team \(403\): .*; apply the roles",
        ),
        (
            "POST",
            403,
            "exceeded quota: jobs",
            WorkerFailed,
            "namespace team has no room to create a TrainJob: exceeded quota",
        ),
        ("POST", 404, "not found", InputError, r"has no TrainJobs.* \(404\).*; install Kubeflow Trainer 2.2 or newer"),
        (
            "POST",
            422,
            "spec.trainer: Invalid",
            InputError,
            r"refuses to create a TrainJob \(422\): spec.trainer: Invalid",
        ),
        ("POST", 500, "etcd", WorkerFailed, r"could not create a TrainJob for 0 s: 500 etcd"),
        ("GET", 403, "no", InputError, r"does not let this account read a TrainJob"),
        ("GET", 503, "busy", WorkerFailed, r"could not read a TrainJob for 0 s: 503 busy"),
        ("GET", 404, "gone", WorkerFailed, "was deleted while it ran; run again"),
    ],
)
def test_faults_that_last_are_one_line_and_leave_no_job(
    s3: Store,
    dataset: Dataset,
    kubernetes: Start,
    trained: Path,
    tmp_path: Path,
    method: str,
    status: int,
    said: str,
    error: type[Exception],
    message: str,
) -> None:
    api = kubernetes(partial(leave, trained))
    api.fail(method, "trainjobs", status, message=said)
    with pytest.raises(error, match=message) as caught:
        start(s3, dataset, tmp_path)
    assert "\n" not in str(caught.value)
    assert api.jobs == {} and not (tmp_path / "model").exists()


def test_server_that_is_not_there_is_one_line(s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path) -> None:
    kubernetes(lambda api, job, pods: None)
    (tmp_path / "kubeconfig").write_text((tmp_path / "kubeconfig").read_text().replace("127.0.0.1:", "127.0.0.1:1"))
    with pytest.raises((WorkerFailed, InputError)):
        start(s3, dataset, tmp_path)


def test_without_credentials_it_says_what_is_missing(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"training in a cluster needs .* and .*/none names no cluster"):
        start(s3, dataset, tmp_path)


def test_job_that_cannot_be_deleted_is_told(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = kubernetes(partial(leave, trained))
    api.fail("DELETE", "trainjobs", 403, message="may not")
    start(s3, dataset, tmp_path)
    (name,) = api.jobs
    assert f"TrainJob {name} is left in namespace team: " in capsys.readouterr().out


def waiting(reason: str, message: str) -> Kubelet:
    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        pods[0].set_state("Running", {"running": {}})
        pods[1].set_state("Pending", {"waiting": {"reason": reason, "message": message}})

    return kubelet


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("ImagePullBackOff", "Back-off pulling image registry/train"),
        ("CreateContainerConfigError", 'secret "mlites-s3" not found'),
    ],
)
def test_pod_that_cannot_start_fails_the_step_with_the_reason(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path, reason: str, said: str
) -> None:
    api = kubernetes(waiting(reason, said))
    with pytest.raises(WorkerFailed, match=rf"cannot start: pod mlites-\S+: {reason}: {said}"):
        start(s3, dataset, tmp_path)
    assert api.jobs == {}


def test_no_room_in_the_cluster_is_said_at_once_and_fails_in_time(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unschedulable(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        for pod in pods:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
            pod.document["status"] = {"phase": "Pending", "conditions": [condition]}

    kubernetes(unschedulable)
    with pytest.raises(WorkerFailed, match=r"0 of 2 workers run after 1 s: pod \S+: Unschedulable: 0/3 nodes"):
        start(s3, dataset, tmp_path, SETTINGS.model_copy(update={"start_seconds": 1}))
    assert capsys.readouterr().out.count("0 of 2 workers run: pod") == 1


def test_quota_that_lets_no_pod_be_made_is_named_from_the_events(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path
) -> None:
    def refuse(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        for pod in pods:
            del api.pods[pod.name]
        api.event(f"{job['metadata']['name']}-node-0", "pods is forbidden: exceeded quota: team, requested: cpu=2")

    api = kubernetes(refuse)
    brief = SETTINGS.model_copy(update={"start_seconds": 1})
    with pytest.raises(WorkerFailed, match="exceeded quota: team, requested: cpu=2"):
        start(s3, dataset, tmp_path, brief)
    api.fail("GET", "events", 403)
    with pytest.raises(WorkerFailed, match="the cluster does not say why; look at its events"):
        start(s3, dataset, tmp_path, brief)


def ending(*ends: dict[str, Any], reason: str = "FailedJobs", message: str = "jobset failed") -> Kubelet:
    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        for pod, end in zip(pods, ends, strict=False):
            pod.end(**end)
        api.condition(job["metadata"]["name"], "Failed", reason, message)

    return kubelet


@pytest.mark.parametrize(
    ("kubelet", "message"),
    [
        (
            ending({"code": 1, "words": "lost another worker"}, {"code": 137, "reason": "OOMKilled"}),
            r"worker 1 of 2 \(pod \S+\) ended \(OOMKilled, exit code 137\); give each worker more memory$",
        ),
        (
            ending({"code": 1, "words": "ValueError: no"}, {"code": 1, "words": "lost another worker"}),
            r"worker 0 of 2 \(pod \S+\) ended \(Error, exit code 1\): ValueError: no$",
        ),
        (ending(reason="DeadlineExceeded"), "it took longer than it may; allow it more time, or more workers$"),
        (ending(reason="TrainingRuntimeNotSupported", message="runtime x not found"), "failed: runtime x not found$"),
    ],
)
def test_failed_job_names_the_worker_that_failed_first(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path, kubelet: Kubelet, message: str
) -> None:
    api = kubernetes(kubelet)
    with pytest.raises(WorkerFailed, match=message):
        start(s3, dataset, tmp_path)
    assert api.jobs == {}


def test_wrong_input_that_a_worker_found_is_that_of_the_step(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path
) -> None:
    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        from mlites.training.job import write_failure

        write_failure(Job.read(job["spec"]["trainer"]["args"][-1]).failure, "training diverged; lower learning_rate")

    api = kubernetes(kubelet)
    with pytest.raises(InputError, match=r"^training diverged; lower learning_rate$"):
        start(s3, dataset, tmp_path)
    assert api.jobs == {}


def test_complete_job_without_a_model_is_no_success(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path
) -> None:
    kubernetes(lambda api, job, pods: api.condition(job["metadata"]["name"], "Complete"))
    with pytest.raises(WorkerFailed, match=r"is complete, but left no model at s3://.*/model; run it again"):
        start(s3, dataset, tmp_path)


def test_step_that_is_tried_again_takes_over_the_job_at_work(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path
) -> None:
    """The first try was killed with SIGKILL: its job runs on."""
    left: list[Document] = []

    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        left.append(job)

    api = kubernetes(kubelet)
    with pytest.raises(WorkerFailed):
        start(s3, dataset, tmp_path, SETTINGS.model_copy(update={"start_seconds": 1}))
    job = left[0]
    job["metadata"] = {"name": job["metadata"]["name"]}
    api.create("team", json.loads(json.dumps(job)))
    api.kubelet = lambda *_: pytest.fail("a second job was made")
    pods = list(api.pods.values())
    threading.Timer(0.3, leave, (trained, api, job, pods)).start()
    start(s3, dataset, tmp_path)
    assert len(api.created) == 2 and api.jobs == {}


def test_failed_job_that_an_earlier_try_left_is_replaced(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path
) -> None:
    api = kubernetes(ending({"code": 1}))
    api.fail("DELETE", "trainjobs", 403)
    with pytest.raises(WorkerFailed):
        start(s3, dataset, tmp_path)
    assert len(api.jobs) == 1
    api.faults.clear()
    api.kubelet = partial(leave, trained)
    start(s3, dataset, tmp_path)
    assert len(api.created) == 2 and api.jobs == {}


def test_suspended_job_waits_for_its_queue(
    s3: Store, dataset: Dataset, kubernetes: Start, trained: Path, tmp_path: Path
) -> None:
    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        api.condition(job["metadata"]["name"], "Suspended")
        time.sleep(1.5)  # longer than it may take to start
        job["status"]["conditions"].clear()
        leave(trained, api, job, pods)

    kubernetes(kubelet)
    start(s3, dataset, tmp_path, SETTINGS.model_copy(update={"start_seconds": 1}))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_step_that_is_told_to_end_takes_its_job_with_it(
    s3: Store, dataset: Dataset, kubernetes: Start, tmp_path: Path, number: signal.Signals
) -> None:
    def kubelet(api: KubernetesApi, job: Document, pods: list[Pod]) -> None:
        for pod in pods:
            pod.set_state("Running", {"running": {}})
        os.kill(os.getpid(), number)

    api = kubernetes(kubelet)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        start(s3, dataset, tmp_path)
    assert number == signal.SIGINT or caught.value.code == 143  # type: ignore[union-attr]
    assert api.jobs == {} and signal.getsignal(signal.SIGTERM) == before
