"""The pipeline of a recipe: prepare, train, compress along a trie, validate, select, gate, deploy, report."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_task import PipelineTask

from components.decline import decline
from components.deploy import deploy
from components.distill import distill
from components.export import export
from components.factorize import factorize
from components.gate import gate
from components.prepare_data import prepare_data
from components.prune import prune
from components.qat import qat
from components.quantize import quantize
from components.report import report
from components.select import select
from components.share import share
from components.train_teacher import train_teacher
from components.validate import validate
from mlites.recipe import Recipe
from pipelines.placement import place_task
from pipelines.trie import Node, candidate_nodes, nodes, source_node

DEFAULT_STORE = "s3://mlites"
CREDENTIALS_SECRET = "mlites-s3"  # noqa: S105 a secret's name
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # its keys, named as the variables that a task sees
SERVERS_CONFIG_MAP = "mlites-servers"
S3_SERVER = ("MLITES_S3_ENDPOINT", "AWS_REGION")  # keys of the config map
TRITON_SERVER = ("MLITES_TRITON_URL", "MLITES_TRITON_GRPC")
STORE_TASKS = ("prepare-data", "train-teacher", "validate", "select", "gate", "deploy", "decline", "report")


def build_pipeline(recipe: Recipe, *, environment: Mapping[str, str], local: bool) -> BaseComponent:
    """Wire the pipeline of a recipe.

    Data location, seed, budget and store are parameters of the pipeline, with the recipe's values as defaults.

    Args:
        recipe: A checked recipe.
        environment: Variables of every task; they take part in caching. ``MLITES_STORE_ID`` goes to those tasks alone
            whose result lies in the store.
        local: For ``kfp.local``; else for a cluster, where credentials come from the secret ``mlites-s3`` and the
            servers' addresses from the config map ``mlites-servers``.
    """
    ends = candidate_nodes(recipe.candidates, recipe.hardware)
    default_budget = _plain(recipe.budget)
    factory = {"MLITES_TRUSTED_FACTORIES": ",".join(recipe.factories)} if recipe.factories else {}

    def add(component: Any, step: str, label: str = "", /, *, cached: bool = True, **arguments: Any) -> PipelineTask:
        task: PipelineTask = _named(component, step)(**arguments)
        kind = component.name
        for key, value in {**environment, **factory, "MLITES_STEP": step}.items():
            if key != "MLITES_STORE_ID" or kind in ("validate", "select", "gate"):
                task.set_env_variable(key, value)
        task.set_caching_options(enable_caching=cached)
        if label:
            task.set_display_name(label)
        if not local and kind in STORE_TASKS:
            servers = S3_SERVER + (TRITON_SERVER if kind == "deploy" else ())
            kubernetes.use_secret_as_env(task, CREDENTIALS_SECRET, {key: key for key in CREDENTIALS})
            kubernetes.use_config_map_as_env(task, SERVERS_CONFIG_MAP, {key: key for key in servers})
        if not local and kind == "validate":
            place_task(task, recipe.hardware)
        return task

    @dsl.pipeline(name=f"mlites-{recipe.name}", description=f"Compress, prove and serve: recipe {recipe.name}")
    def pipeline(
        run: str = "",
        data_path: str = recipe.data.path or "",
        data_digest: str = "",
        reference_path: str = recipe.data.reference or "",
        teacher_path: str = recipe.teacher.model or recipe.teacher.weights or "",
        teacher_digest: str = "",
        seed: int = recipe.seed,
        budget: dict = default_budget,  # type: ignore[type-arg]
        store: str = DEFAULT_STORE,
    ) -> None:
        data = add(
            prepare_data,
            "prepare-data",
            f"prepare {recipe.data.source}",
            options=recipe.data.model_dump(mode="json", exclude_none=True, exclude={"path", "reference"}),
            task_kind=recipe.task or "",
            path=data_path,
            reference=reference_path,
            digest=data_digest,
            seed=seed,
        )
        dataset = data.outputs["dataset"]
        teacher = add(
            train_teacher,
            "train-teacher",
            "teacher",
            options=_plain(recipe.teacher),
            path=teacher_path,
            digest=teacher_digest,
            seed=seed,
            store=store,
            dataset=dataset,
        )
        models: dict[str, Any] = {}
        for node in nodes(list(ends.values())):
            parent = models[node.parent.name] if node.parent else teacher.outputs["model"]
            task = _add_node(add, node, parent, teacher.outputs["model"], dataset, seed)
            models[node.name] = task.outputs["model"]
        baseline = models[Node(None).name]
        verdicts = [
            add(
                validate,
                f"validate-{candidate.name}",
                f"validate {candidate.name}",
                name=candidate.name,
                passes=[step.label for step in candidate.passes],
                hardware=_plain(recipe.hardware),
                budget=budget,
                store=store,
                candidate=models[ends[candidate.name].name],
                source=models[source_node(ends[candidate.name]).name],
                baseline=baseline,
                dataset=dataset,
            ).outputs["Output"]
            for candidate in recipe.candidates
        ]
        selection = add(select, "select", verdicts=verdicts, budget=budget, store=store).output
        approved = add(gate, "gate", selection=selection, store=store).output
        with dsl.If(approved == True, name="within-budget"):  # noqa: E712 a condition of KFP
            deployed = add(
                deploy,
                "deploy",
                cached=False,
                selection=selection,
                model=recipe.model_name,
                serving=_plain(recipe.serving),
                threads=recipe.hardware.threads,
                store=store,
                dataset=dataset,
            ).output
        with dsl.Else(name="over-budget"):
            declined = add(
                decline, "decline", cached=False, selection=selection, model=recipe.model_name, store=store
            ).output
        add(
            report,
            "report",
            cached=False,
            run=run,
            job=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            recipe=_plain(recipe),
            selection=selection,
            deployment=dsl.OneOf(deployed, declined),
            store=store,
            dataset=dataset,
            quality=data.outputs["quality"],
        )

    return pipeline


def compile_pipeline(pipeline: BaseComponent, target: Path) -> None:
    """Write the IR as YAML; equal recipes give equal bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.partial.yaml")
    compiler.Compiler().compile(pipeline, str(work))
    work.replace(target)


STEPS = {
    "distill": distill,
    "export": export,
    "factorize": factorize,
    "prune": prune,
    "qat": qat,
    "quantize": quantize,
    "share": share,
}


def _add_node(add: Any, node: Node, parent: Any, teacher: Any, dataset: Any, seed: Any) -> PipelineTask:
    arguments: dict[str, Any] = {"parent": parent, "dataset": dataset}
    if node.step:
        arguments["options"] = _plain(node.step)
    if node.kind not in ("export", "quantize"):
        arguments["seed"] = seed
    if node.kind == "distill":
        arguments["teacher"] = teacher
    task: PipelineTask = add(STEPS[node.kind], node.name, node.label, **arguments)
    if node != Node(None):  # without the teacher's own export nothing can be judged
        task.set_env_variable("MLITES_CANDIDATE_STEP", node.label)
    return task


def _named(component: Any, name: str) -> Any:
    """A copy of the component under its own name: names, and so cache keys, do not depend on the order of tasks."""
    clone = copy.copy(component)
    clone.component_spec = copy.deepcopy(component.component_spec)
    clone.component_spec.name = clone.name = name
    return clone


def _plain(options: Any) -> dict[str, Any]:
    plain: dict[str, Any] = options.model_dump(mode="json", by_alias=True, exclude_none=True)
    return plain
