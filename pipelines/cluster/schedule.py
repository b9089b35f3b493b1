"""Recipes that run by themselves: one schedule a recipe, never two runs at once, none caught up with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlites.errors import InputError
from pipelines.cluster.client import Client
from pipelines.cluster.package import Package
from pipelines.cluster.submit import experiment_of, publish
from pipelines.cluster.trigger import in_words

PREFIX = "mlites-"
PAGE = 100


@dataclass(frozen=True)
class Schedule:
    """A recurring run of Kubeflow that mlites made.

    Attributes:
        id: Kubeflow's.
        recipe: name of the recipe.
        enabled: whether it fires.
        trigger: in words.
        version: of the pipeline, Kubeflow's id.
    """

    id: str
    recipe: str
    enabled: bool
    trigger: str
    version: str


def create(
    client: Client,
    package: Package,
    *,
    cron: str | None,
    seconds: int | None,
    parameters: dict[str, Any],
    service_account: str | None = None,
) -> str:
    """Schedule the package in place of the recipe's schedules so far; returns its id.

    A run that finds its inputs as the last verdict had them ends early. The new schedule is made before the old ones
    go, so that none is lost where this fails halfway.

    Args:
        client: the connection.
        package: the pipeline.
        cron: six fields, or None.
        seconds: between two runs, or None.
        parameters: those that differ from their defaults.
        service_account: of the tasks' pods; None takes Kubeflow's own.
    """
    pipeline, version = publish(client, package)
    earlier = [one for one in schedules(client) if one.recipe == package.name.removeprefix(PREFIX)]
    made = client.create_recurring_run(
        experiment_of(client, package.name),
        package.name,
        description="made by mlites",
        interval_second=seconds,
        cron_expression=cron,
        max_concurrency=1,
        no_catchup=True,
        params={"only_if_changed": True, **parameters},
        pipeline_id=pipeline,
        version_id=version,
        service_account=service_account,
    )
    for one in earlier:
        client.delete_recurring_run(one.id)
    return str(made.recurring_run_id)


def schedules(client: Client) -> list[Schedule]:
    """All that mlites made, by name."""
    found = [_read(one) for one in _recurring_runs(client) if str(one.display_name).startswith(PREFIX)]
    return sorted(found, key=lambda one: (one.recipe, one.id))


def pause(client: Client, recipe: str) -> None:
    """Let the recipe's schedule fire no more until it is resumed; a run under way goes on."""
    for one in _of(client, recipe):
        client.disable_recurring_run(one.id)


def resume(client: Client, recipe: str) -> None:
    """Let a paused schedule fire again; what it missed is not caught up with."""
    for one in _of(client, recipe):
        client.enable_recurring_run(one.id)


def delete(client: Client, recipe: str) -> None:
    """Remove the recipe's schedule; its runs stay."""
    for one in _of(client, recipe):
        client.delete_recurring_run(one.id)


def _of(client: Client, recipe: str) -> list[Schedule]:
    every = schedules(client)
    found = [one for one in every if one.recipe == recipe]
    if not found:
        names = ", ".join(dict.fromkeys(one.recipe for one in every))
        raise InputError(f"{recipe}: no such schedule; there {f'are {names}' if names else 'is none'}")
    return found


def _recurring_runs(client: Client) -> Iterator[Any]:
    token = ""
    while True:
        answer = client.list_recurring_runs(page_token=token, page_size=PAGE, namespace=client.namespace)
        yield from answer.recurring_runs or []
        token = answer.next_page_token or ""
        if not token:
            return


def _read(run: Any) -> Schedule:
    trigger = run.trigger
    cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else None
    seconds = int(trigger.periodic_schedule.interval_second) if trigger and trigger.periodic_schedule else None
    reference = run.pipeline_version_reference
    return Schedule(
        str(run.recurring_run_id),
        str(run.display_name).removeprefix(PREFIX),
        run.status == "ENABLED",
        in_words(cron, seconds),
        str(reference.pipeline_version_id) if reference else "",
    )
