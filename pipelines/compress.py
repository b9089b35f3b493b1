"""The pipeline of a recipe: prepare, train, compress along a trie, validate, select, gate, deploy, report."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_task import PipelineTask

from components.check_inputs import check_inputs
from components.decline import decline
from components.deploy import deploy
from components.distill import distill
from components.export import export
from components.factorize import factorize
from components.gate import gate
from components.notify import notify
from components.prepare_data import prepare_data
from components.prune import prune
from components.qat import qat
from components.quantize import quantize
from components.report import report
from components.select import select
from components.share import share
from components.sweep import sweep
from components.train_teacher import train_teacher
from components.validate import validate
from mlites.recipe import Recipe
from mlites.storage import DEFAULT_STORE
from pipelines.cluster.tasks import from_image, run_in_lanes, set_environment, settle_task, step_kind, train_job
from pipelines.placement import place_task
from pipelines.trie import Node, candidate_nodes, nodes, source_node

JOB = dsl.PIPELINE_JOB_NAME_PLACEHOLDER


def build_pipeline(
    recipe: Recipe,
    *,
    environment: Mapping[str, str],
    local: bool,
    image: Callable[[str], str] = str,
    default_store: str = DEFAULT_STORE,
) -> BaseComponent:
    """Wire the pipeline of a recipe.

    Data location, seed, budget and store are parameters of the pipeline, with the recipe's values as defaults.

    Args:
        recipe: A checked recipe.
        environment: Variables of every task; they take part in caching. ``MLITES_STORE_ID`` goes to those tasks alone
            whose result lies in the store.
        local: For ``kfp.local``, which is told digests of the inputs; else for a cluster, whose first task looks them
            up, and whose last one, an exit handler, publishes the run's page and notifies.
        image: Names an image as the cluster finds it.
        default_store: The parameter's default; in a cluster steps also tell there what became of them, and keep their
            checkpoints there.
    """
    factory = {"MLITES_TRUSTED_FACTORIES": ",".join(recipe.factories)} if recipe.factories else {}
    events = {} if local else {"MLITES_EVENTS": default_store}

    def add(component: Any, step: str, label: str = "", /, *, cached: bool = True, **arguments: Any) -> PipelineTask:
        kind, place = component.name, image(component.component_spec.implementation.container.image)
        task: PipelineTask = _named(component if local else from_image(component, place), step)(**arguments)
        variables = {**environment, **factory, **events, "MLITES_STEP": step}
        if kind not in ("validate", "select", "gate", "sweep"):
            variables.pop("MLITES_STORE_ID", None)
        task.set_caching_options(enable_caching=cached)
        if label:
            task.set_display_name(label)
        if not local:
            variables["MLITES_LABEL"] = label or step
            if step_kind(kind) == "train":
                variables["MLITES_CHECKPOINTS"] = f"{default_store}/checkpoints"
            if kind == "train-teacher" and recipe.teacher.workers > 1:
                variables["MLITES_TRAIN_JOB"] = train_job(place, recipe.cluster)
            settle_task(task, kind, recipe.cluster)
            if kind == "validate":
                place_task(task, recipe.hardware)
        set_environment(task, variables)
        return task

    def wire(inputs: "_Inputs") -> None:
        _wire(add, recipe, inputs, None if local else recipe.cluster.parallelism)

    return _here(recipe, wire) if local else _in_cluster(recipe, add, wire, default_store)


def _here(recipe: Recipe, wire: Callable[["_Inputs"], None]) -> BaseComponent:
    default_budget = _plain(recipe.budget)

    @dsl.pipeline(name=f"mlites-{recipe.name}", description=f"Compress, prove and serve: recipe {recipe.name}")
    def here(
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
        wire(_Inputs(run, data_path, data_digest, reference_path, teacher_path, teacher_digest, seed, budget, store))

    return here


def _in_cluster(recipe: Recipe, add: Any, wire: Callable[["_Inputs"], None], default_store: str) -> BaseComponent:
    default_budget = _plain(recipe.budget)

    @dsl.pipeline(
        name=f"mlites-{recipe.name}",
        description=f"Compress, prove and serve: recipe {recipe.name}",
        pipeline_config=dsl.PipelineConfig(active_deadline_seconds=recipe.cluster.run_timeout_hours * 3600),
    )
    def in_cluster(
        run: str = "",
        data_path: str = recipe.data.path or "",
        reference_path: str = recipe.data.reference or "",
        teacher_path: str = recipe.teacher.model or recipe.teacher.weights or "",
        seed: int = recipe.seed,
        budget: dict = default_budget,  # type: ignore[type-arg]
        store: str = default_store,
        only_if_changed: bool = False,
    ) -> None:
        last = add(notify, "notify", cached=False, run=run, job=JOB, recipe=_plain(recipe), store=store)
        with dsl.ExitHandler(last, name="run"):
            checked = add(
                check_inputs,
                "check-inputs",
                cached=False,
                recipe=_plain(recipe),
                data_path=data_path,
                reference_path=reference_path,
                teacher_path=teacher_path,
                seed=seed,
                budget=budget,
                only_if_changed=only_if_changed,
                store=store,
            )
            digests = checked.outputs["data_digest"], checked.outputs["teacher_digest"]
            with dsl.If(checked.outputs["Output"] == True, name="something-to-do"):  # noqa: E712 a condition of KFP
                wire(_Inputs(run, data_path, digests[0], reference_path, teacher_path, digests[1], seed, budget, store))

    return in_cluster


@dataclass(frozen=True)
class _Inputs:
    """The pipeline's parameters, and what stands in for them."""

    run: Any
    data_path: Any
    data_digest: Any
    reference_path: Any
    teacher_path: Any
    teacher_digest: Any
    seed: Any
    budget: Any
    store: Any


def _wire(add: Any, recipe: Recipe, inputs: _Inputs, lanes: int | None) -> None:
    ends = candidate_nodes(recipe.candidates, recipe.hardware)
    data = add(
        prepare_data,
        "prepare-data",
        f"prepare {recipe.data.source}",
        options=recipe.data.model_dump(mode="json", exclude_none=True, exclude={"path", "reference"}),
        task_kind=recipe.task or "",
        path=inputs.data_path,
        reference=inputs.reference_path,
        digest=inputs.data_digest,
        seed=inputs.seed,
    )
    dataset = data.outputs["dataset"]
    teacher = add(
        train_teacher,
        "train-teacher",
        "teacher",
        options=_plain(recipe.teacher),
        path=inputs.teacher_path,
        digest=inputs.teacher_digest,
        seed=inputs.seed,
        store=inputs.store,
        dataset=dataset,
    )
    models: dict[str, Any] = {}
    fan: list[PipelineTask] = []
    for node in nodes(list(ends.values())):
        parent = models[node.parent.name] if node.parent else teacher.outputs["model"]
        fan.append(_add_node(add, node, parent, teacher.outputs["model"], dataset, inputs.seed))
        models[node.name] = fan[-1].outputs["model"]
    baseline = models[Node(None).name]
    verdicts = [
        add(
            validate,
            f"validate-{candidate.name}",
            f"validate {candidate.name}",
            name=candidate.name,
            passes=[step.label for step in candidate.passes],
            hardware=_plain(recipe.hardware),
            budget=inputs.budget,
            store=inputs.store,
            candidate=models[ends[candidate.name].name],
            source=models[source_node(ends[candidate.name]).name],
            baseline=baseline,
            dataset=dataset,
        )
        for candidate in recipe.candidates
    ]
    if lanes is not None:
        run_in_lanes([*fan, *verdicts], lanes)
    selection = add(
        select,
        "select",
        verdicts=[one.outputs["Output"] for one in verdicts],
        budget=inputs.budget,
        store=inputs.store,
    ).output
    approved = add(gate, "gate", selection=selection, store=inputs.store).output
    with dsl.If(approved == True, name="within-budget"):  # noqa: E712 a condition of KFP
        settings = ""
        if recipe.serving.sweep:
            settings = add(
                sweep,
                "sweep",
                "serving settings",
                selection=selection,
                serving=_plain(recipe.serving),
                hardware=_plain(recipe.hardware),
                budget=inputs.budget,
                store=inputs.store,
                dataset=dataset,
            ).output
        deployed = add(
            deploy,
            "deploy",
            cached=False,
            settings=settings,
            selection=selection,
            model=recipe.model_name,
            serving=_plain(recipe.serving),
            threads=recipe.hardware.threads,
            store=inputs.store,
            recipe=_plain(recipe),
            dataset=dataset,
        ).output
    with dsl.Else(name="over-budget"):
        declined = add(
            decline, "decline", cached=False, selection=selection, model=recipe.model_name, store=inputs.store
        ).output
    add(
        report,
        "report",
        cached=False,
        run=inputs.run,
        job=JOB,
        recipe=_plain(recipe),
        selection=selection,
        deployment=dsl.OneOf(deployed, declined),
        store=inputs.store,
        dataset=dataset,
        quality=data.outputs["quality"],
    )


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
        set_environment(task, {"MLITES_CANDIDATE_STEP": node.label})
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
