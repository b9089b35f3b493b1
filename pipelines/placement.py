"""Where a cluster measures: a hardware profile as node selector, tolerations and limits of a task."""

from kfp import kubernetes
from kfp.dsl.pipeline_task import PipelineTask

from mlites.recipe import Hardware

STEP_MIB = 2048  # for the data and the libraries of the step itself, beside the process that infers within the profile
GPU = "nvidia.com/gpu"


def place_task(task: PipelineTask, hardware: Hardware) -> None:
    """Ask for a node of the target's kind, and for no more of it than the target has.

    Requests equal limits: only then does Kubernetes lend cores to one container alone, and not a share of all cores'
    time, which would stop the measurement again and again.
    """
    if hardware.cores is not None:
        task.set_cpu_request(str(hardware.cores)).set_cpu_limit(str(hardware.cores))
    if hardware.memory_mib is not None:
        memory = f"{hardware.memory_mib + STEP_MIB}Mi"
        task.set_memory_request(memory).set_memory_limit(memory)
    if hardware.provider == "cuda":
        task.set_accelerator_type(GPU).set_accelerator_limit(1)
    for label, value in hardware.cluster.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for one in hardware.cluster.tolerations:
        kubernetes.add_toleration(task, key=one.key, operator=one.operator, value=one.value, effect=one.effect)
