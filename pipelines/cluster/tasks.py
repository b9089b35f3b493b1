"""How a task runs in a cluster: resources, time limit, further tries, user, scratch space, names of secrets."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kfp import kubernetes
from kfp.dsl.pipeline_task import PipelineTask

from mlites.errors import InputError
from mlites.recipe import InCluster
from mlites.recipe.cluster import Step
from pipelines.placement import GPU

USER = 1000  # that the images are built for; its group has the same number
SCRATCH = "20Gi"
LONGEST_WAIT_SECONDS = 600  # between two tries
CREDENTIALS_SECRET = "mlites-s3"  # noqa: S105 a secret's name
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # its keys, named as the variables that a task sees
SERVERS_CONFIG_MAP = "mlites-servers"
S3_SERVER = ("MLITES_S3_ENDPOINT", "AWS_REGION")  # keys of the config map
TRITON_SERVER = (
    "MLITES_TRITON_URL",
    "MLITES_TRITON_GRPC",
    "MLITES_TRITON_REPLICAS",
    "MLITES_SANDBOX_URL",
    "MLITES_SANDBOX_GRPC",
)
NOTIFY_SECRET = "mlites-notify"  # noqa: S105 a secret's name
WEBHOOK = "MLITES_WEBHOOK_URL"  # its key
RUN_LABEL = "metadata.labels['pipeline/runid']"  # KFP's name for the run, on every pod

KINDS = {
    "prepare-data": "prepare",
    "train-teacher": "train",
    "distill": "train",
    "factorize": "train",
    "prune": "train",
    "qat": "train",
    "share": "train",
    "export": "convert",
    "quantize": "convert",
    "validate": "measure",
    "sweep": "deploy",
    "deploy": "deploy",
}  # the others decide
FROM_IMAGE = ["python3", "-m", "components"]


def set_environment(task: PipelineTask, variables: Mapping[str, str]) -> None:
    """Add variables to a task's. KFP's own method looks through the whole call stack for each one, which takes long."""
    task.container_spec.env = {**(task.container_spec.env or {}), **variables}


def from_image(component: Any, image: str) -> Any:
    """The component with the code that its image holds, in place of the copy of it that KFP puts into every task.

    The image's tag stays, so the code is as certain, and a pipeline of hundreds of tasks keeps below the size that
    Kubernetes takes. For the same reason inputs go without their descriptions.
    """
    clone = copy.copy(component)
    clone.component_spec = copy.deepcopy(component.component_spec)
    for one in [*(clone.component_spec.inputs or {}).values(), *(clone.component_spec.outputs or {}).values()]:
        one.description = None
    container = clone.component_spec.implementation.container
    container.command, container.image = [*FROM_IMAGE], image
    return clone


def step_kind(component: str) -> str:
    """Which settings of the recipe's cluster section a component's tasks take."""
    return KINDS.get(component, "decide")


def train_job(image: str, cluster: InCluster) -> str:
    """How the pods of a TrainJob run, which train a teacher with several workers: as a task that trains would.

    Raises:
        InputError: more GPUs than a worker takes.
    """
    from mlites.training.train_job import JobSettings  # knows PyTorch, which takes long to import

    step = cluster.train
    if step.gpu > 1:
        raise InputError(f"cluster.train.gpu is {step.gpu}, but each of a teacher's workers takes one: raise workers")
    settings = JobSettings(
        image=image,
        cpu=f"{step.cpu:g}",
        memory=f"{step.memory_mib}Mi",
        gpus=step.gpu,
        seconds=step.timeout_minutes * 60,
    )
    return settings.model_dump_json(exclude_none=True)


def settle_task(task: PipelineTask, component: str, cluster: InCluster) -> None:
    """Give a task all that it needs in a cluster, but not its place: see `pipelines.placement`.

    The root of its file system may be read-only: it writes to /tmp and to KFP's own volumes alone.
    """
    step: Step = getattr(cluster, step_kind(component))
    cpu, memory = f"{step.cpu:g}", f"{step.memory_mib}Mi"
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    if step.gpu:
        task.set_accelerator_type(GPU).set_accelerator_limit(step.gpu)
    if component != "validate":  # which keeps to its profile's threads
        set_environment(task, {"OMP_NUM_THREADS": str(max(1, int(step.cpu)))})
    task.set_retry(
        step.retries,
        backoff_duration=f"{cluster.retry_seconds}s",
        backoff_factor=2.0,
        backoff_max_duration=f"{max(LONGEST_WAIT_SECONDS, cluster.retry_seconds)}s",
    )
    kubernetes.set_timeout(task, step.timeout_minutes * 60)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=SCRATCH)  # noqa: S108 this pod's own
    kubernetes.use_field_path_as_env(task, "MLITES_RUN_ID", RUN_LABEL)
    kubernetes.use_secret_as_env(task, CREDENTIALS_SECRET, {key: key for key in CREDENTIALS})
    servers = S3_SERVER + (TRITON_SERVER if step_kind(component) == "deploy" else ())
    kubernetes.use_config_map_as_env(task, SERVERS_CONFIG_MAP, {key: key for key in servers})
    if component == "notify":
        kubernetes.use_secret_as_env(task, NOTIFY_SECRET, {WEBHOOK: WEBHOOK}, optional=True)
    if cluster.queue is not None:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", cluster.queue)
    if cluster.priority_class is not None:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", cluster.priority_class)


def run_in_lanes(tasks: Sequence[PipelineTask], lanes: int) -> None:
    """Let at most so many tasks run at once: each waits for the one that many places before it.

    KFP limits loops alone, and the tasks here differ from one another. Two tasks that run at the same time never stand
    in the same lane, since within a lane each waits for the one before.

    Args:
        tasks: in an order in which none comes before what it needs.
        lanes: how many may run at once.
    """
    for before, task in _pairs(tasks, lanes):
        if before.name not in task.dependent_tasks:
            task.after(before)


def _pairs(tasks: Sequence[PipelineTask], lanes: int) -> Iterator[tuple[PipelineTask, PipelineTask]]:
    return zip(tasks, tasks[lanes:], strict=False)
