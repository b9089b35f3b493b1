"""A teacher trained in a cluster: a Kubeflow TrainJob runs torchrun in pods, and this step waits for its model.

Data and model go through the store. A step that is tried again takes over the job that an earlier try left, and the
cluster removes the job with the pod of the step that made it.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from mlites import __version__
from mlites.data.dataset import Dataset
from mlites.errors import InputError, WorkerFailed, first_fault
from mlites.files import canonical_json, digest_file, digest_folder, digest_json
from mlites.models.card import ModelCard, read_card
from mlites.models.factory import TRUSTED
from mlites.recipe import Teacher
from mlites.recipe.options import Options
from mlites.storage import MissingObject, Store
from mlites.training.cluster import Cluster, Finding
from mlites.training.job import Job, read_failure

API_VERSION = "trainer.kubeflow.org/v1alpha1"
CONTAINER = "node"  # the runtime's name for its replicated job and for its container
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SERVERS = ("MLITES_S3_ENDPOINT", "AWS_REGION")
LABELS = {"app.kubernetes.io/part-of": "mlites", "app.kubernetes.io/component": "trainer"}
USER = 1000
POLL_SECONDS = 2.0
TROUBLE_SECONDS = 120.0  # that a pod may be unable to start, as a registry may be down for a moment


class JobSettings(Options):
    """How a TrainJob runs in this cluster, as ``MLITES_TRAIN_JOB`` says it in JSON."""

    image: str = Field(min_length=1, max_length=500, description="With mlites and PyTorch, by digest or build tag.")
    namespace: str | None = Field(None, description="Default: that of this pod.")
    runtime: str = Field("torch-distributed", description="A ClusterTrainingRuntime that starts torchrun.")
    cpu: str = Field("2", pattern=r"^\d+(\.\d+|m)?$", description="Cores of each worker.")
    memory: str = Field("4Gi", pattern=r"^\d+(Ki|Mi|Gi|Ti|k|M|G|T)?$", description="Of each worker.")
    gpus: int = Field(0, ge=0, le=1, description="Of each worker.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that the workers' nodes have.")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="Of the workers' pods, as Kubernetes writes them.")
    secret: str = Field("mlites-s3", description="Holds the keys of S3.")
    config_map: str = Field("mlites-servers", description="Says where S3 is.")
    start_seconds: int = Field(1800, ge=1, description="How long all workers may take to start.")
    seconds: int = Field(86400, ge=1, description="How long the training may take.")

    @classmethod
    def parse(cls, text: str) -> "JobSettings":
        """Read the variable's value.

        Raises:
            InputError: not of that form.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            place, fault = first_fault(error, "document")
            raise InputError(f"MLITES_TRAIN_JOB: {place}: {fault}; compile the pipeline again") from None


def train_in_cluster(
    settings: JobSettings,
    teacher: Teacher,
    dataset: Dataset,
    seed: int,
    folder: Path,
    given: Path | None,
    store: str,
) -> ModelCard:
    """Have the pods of a TrainJob train the teacher, show the first one's log, and fetch the model.

    Args:
        settings: of the job.
        teacher: names how many workers, and what to train.
        dataset: to train and decide on; it stays in the store, under its digest.
        seed: of initial weights and all draws.
        folder: where the model goes; replaced whole.
        given: local copy of the user's model folder or weights, where the recipe names one.
        store: ``s3://bucket/prefix``.

    Raises:
        InputError: what a worker found wrong with its input, or what the cluster lacks.
        WorkerFailed: a worker ended before its time or found no place, or the cluster does not answer.
    """
    s3 = Store.open(store)
    data = f"datasets/{dataset.digest}"
    s3.put_folder(data, dataset.folder)
    options = teacher.model_dump(mode="json", exclude_none=True)
    source = _put_given(s3, given) if given else None
    decides = [options, seed, data, source, settings.image, __version__, torch.__version__]
    digest = digest_json(decides)
    place = f"training/{digest}"
    job = Job(
        teacher=options,
        seed=seed,
        data=f"{s3.uri}/{data}",
        given=f"{s3.uri}/{source}" if source else None,
        model=f"{s3.uri}/{place}/model",
        failure=f"{s3.uri}/{place}/failure.json",
    )
    s3.put(f"{place}/job.json", canonical_json(job.to_json()))
    s3.delete(f"{place}/failure.json")
    name = f"mlites-{digest[:20]}"
    manifest = train_job(name, settings, teacher.workers, s3.uri, f"{s3.uri}/{place}/job.json", os.environ)
    cluster = Cluster(settings.namespace)
    with _told_to_end():
        try:
            cluster.create(manifest)
            print(f"TrainJob {name} in namespace {cluster.namespace}: {teacher.workers} workers", flush=True)
            _wait(cluster, name, settings, teacher.workers, job)
        finally:
            cluster.delete(name)
    try:
        s3.get_folder(f"{place}/model", folder)
    except MissingObject:
        raise WorkerFailed(f"TrainJob {name} is complete, but left no model at {job.model}; run it again") from None
    s3.delete_all(f"{place}/")
    return read_card(folder)


def train_job(name: str, settings: JobSettings, workers: int, store: str, job: str, environment: Any) -> dict[str, Any]:
    """The manifest of a TrainJob: one worker a pod, fit for a namespace with the restricted pod-security standard.

    Args:
        name: of the job.
        settings: of the job.
        workers: pods.
        store: ``s3://bucket/prefix``.
        job: address of the workers' job document.
        environment: of this step; tells which pod it runs in, and which factories of the user are trusted.
    """
    resources: dict[str, Any] = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        resources["nvidia.com/gpu"] = str(settings.gpus)
    variables = {
        "HOME": "/tmp/home",  # noqa: S108 a volume of this pod alone
        "MLITES_HOME": "/tmp/mlites",  # noqa: S108
        "MLITES_CHECKPOINTS": f"{store}/checkpoints",
        "OMP_NUM_THREADS": str(_threads(settings.cpu)),
        "PYTHONUNBUFFERED": "1",
        "MLITES_LAST_WORDS": "/dev/termination-log",
    }
    if trusted := environment.get(TRUSTED):
        variables[TRUSTED] = trusted
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in variables.items()]
    for source, of, keys in (
        ("secretKeyRef", settings.secret, CREDENTIALS),
        ("configMapKeyRef", settings.config_map, SERVERS),
    ):
        env += [{"name": key, "valueFrom": {source: {"name": of, "key": key}}} for key in keys]
    pod: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [
            {
                "name": CONTAINER,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
            }
        ],
    }
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        pod["tolerations"] = list(settings.tolerations)
    patched = {"name": CONTAINER, "template": {"spec": {"template": {"metadata": {"labels": LABELS}, "spec": pod}}}}
    metadata: dict[str, Any] = {"name": name, "labels": LABELS}
    if environment.get("KFP_POD_NAME") and environment.get("KFP_POD_UID"):
        owner = {"name": environment["KFP_POD_NAME"], "uid": environment["KFP_POD_UID"]}
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", **owner}]
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"name": settings.runtime},
            "activeDeadlineSeconds": settings.seconds,
            "trainer": {
                "image": settings.image,
                "command": ["python3", "-m", "torch.distributed.run"],
                "args": ["-m", "mlites.training.worker", job],
                "numNodes": workers,
                "numProcPerNode": 1,
                "env": env,
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
            "runtimePatches": [
                {
                    "manager": "mlites.pipelines/train-teacher",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patched]}}},
                }
            ],
        },
    }


def _wait(cluster: Cluster, name: str, settings: JobSettings, workers: int, job: Job) -> None:
    """Return when the job is complete; say why where it does not come to that."""
    start = time.monotonic()
    started, said, trouble_since = False, "", None
    while True:
        finding = cluster.look(name)
        cluster.show_log(name)
        if error := read_failure(job.failure):
            raise InputError(error)
        if finding.complete:
            return
        if finding.failed is not None:
            raise WorkerFailed(f"TrainJob {name} failed: {_cause(finding, workers)}")
        started = started or finding.running >= workers
        if finding.waiting and finding.waiting != said and not started:
            said = finding.waiting
            print(f"{finding.running} of {workers} workers run: {said}", flush=True)
        now = time.monotonic()
        trouble_since = (trouble_since or now) if finding.trouble else None
        if trouble_since and now - trouble_since > TROUBLE_SECONDS:
            raise WorkerFailed(f"TrainJob {name} cannot start: {finding.waiting}")
        if finding.suspended:
            start = now
        if not started and now - start > settings.start_seconds:
            why = finding.waiting or "the cluster does not say why; look at its events"
            raise WorkerFailed(
                f"TrainJob {name}: {finding.running} of {workers} workers run after {settings.start_seconds} s: {why}"
            )
        time.sleep(POLL_SECONDS)


def _cause(finding: Finding, workers: int) -> str:
    """What one line can say: the pod that failed first in preference to what the job's condition says."""
    if finding.failed == "DeadlineExceeded":
        return "it took longer than it may; allow it more time, or more workers"
    if not finding.ended:
        return finding.message or str(finding.failed)
    ended = finding.ended
    advice = "; give each worker more memory" if ended.reason == "OOMKilled" else ""
    said = ended.words and f": {ended.words}"
    how = f"{ended.reason}, exit code {ended.code}"
    return f"worker {ended.index} of {workers} (pod {ended.pod}) ended ({how}){said}{advice}"


def _put_given(store: Store, given: Path) -> str:
    """Put the user's model folder or weights into the store, under their digest."""
    if given.is_dir():
        key = f"given/{digest_folder(given)}"
        store.put_folder(key, given)
        return key
    key = f"given/{digest_file(given)}/{given.name}"
    store.put_file(key, given)
    return key


def _threads(cpu: str) -> int:
    """Whole cores in a Kubernetes quantity, at least one.

    >>> _threads("3.5"), _threads("500m"), _threads("2000m")
    (3, 1, 2)
    """
    cores = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    return max(1, math.floor(cores))


@contextmanager
def _told_to_end() -> Iterator[None]:
    """While this lasts, SIGTERM raises SystemExit: a run that is terminated in Kubeflow takes its job with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
