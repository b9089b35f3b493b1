"""Schedules: one a recipe, never two runs at once, none caught up with, replaced without a gap."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cluster import schedule
from pipelines.cluster.client import Client
from pipelines.cluster.errors import ClusterError
from pipelines.cluster.package import Images, Package, make_package
from tests.pipelines.cluster.kfp_server import Fault, KfpServer

Call = Callable[..., tuple[int, str, str]]


def _create(client: Client, package: Package, seconds: int = 3600) -> str:
    return schedule.create(
        client, package, cron=None, seconds=seconds, parameters={}, service_account="mlites-pipeline"
    )


def test_a_schedule_runs_one_at_a_time_catches_up_with_none_and_only_on_changed_inputs(
    kfp_server: KfpServer, client: Client, package: Package
) -> None:
    made = schedule.create(client, package, cron="0 30 2 * * *", seconds=None, parameters={"seed": 3})
    kept = kfp_server.schedules[made]
    assert (kept.max_concurrency, kept.no_catchup, kept.status) == ("1", True, "ENABLED")
    assert kept.trigger.cron_schedule.cron == "0 30 2 * * *" and kept.trigger.periodic_schedule is None
    assert kept.runtime_config.parameters == {"only_if_changed": True, "seed": 3}
    version = kfp_server.versions[kept.pipeline_version_reference.pipeline_version_id]
    assert version.display_name == package.version


def test_scheduling_again_replaces_the_schedule_after_the_new_one_stands(
    kfp_server: KfpServer, client: Client, package: Package
) -> None:
    first = _create(client, package)
    second = _create(client, package, 7200)
    assert list(kfp_server.schedules) == [second]
    order = [method for method, path in kfp_server.requests if "recurringruns" in path and method != "GET"]
    assert order == ["POST", "POST", "DELETE"]
    kfp_server.faults = [Fault("500", "POST", "recurringruns$")]
    with pytest.raises(ClusterError):
        _create(client, package, 10800)
    assert list(kfp_server.schedules) == [second] != [first]


def test_pausing_resuming_and_deleting_go_by_the_recipes_name(
    kfp_server: KfpServer, client: Client, package: Package
) -> None:
    made = _create(client, package)
    schedule.pause(client, "parts")
    assert kfp_server.schedules[made].status == "DISABLED"
    schedule.resume(client, "parts")
    assert kfp_server.schedules[made].status == "ENABLED"
    schedule.delete(client, "parts")
    assert kfp_server.schedules == {}


def test_all_pages_of_schedules_are_read_and_strangers_left_out(
    kfp_server: KfpServer, client: Client, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "PAGE", 2)
    made = kfp_server.schedules[_create(client, package)]
    import copy

    for number, name in enumerate(["mlites-b", "theirs", "mlites-c", "mlites-a"]):
        other = copy.copy(made)
        other.recurring_run_id, other.display_name = f"other-{number}", name
        kfp_server.schedules[other.recurring_run_id] = other
    assert [one.recipe for one in schedule.schedules(client)] == ["a", "b", "c", "parts"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [("401", "it asks who you are"), ("403", "may not POST"), ("404", "there is no POST"), ("409", "conflicts with")],
)
@pytest.mark.parametrize("action", [schedule.pause, schedule.resume])
def test_a_refused_change_is_one_line(
    kfp_server: KfpServer,
    client: Client,
    package: Package,
    fault: str,
    says: str,
    action: Callable[[Client, str], None],
) -> None:
    _create(client, package)
    kfp_server.faults = [Fault(fault, "POST", ":(en|dis)able$")]
    with pytest.raises(ClusterError, match=says):
        action(client, "parts")


@pytest.mark.parametrize("fault", ["401", "403", "404", "409", "500", "truncated"])
def test_a_schedule_that_cannot_be_deleted_is_told_and_stays(
    kfp_server: KfpServer, client: Client, package: Package, fault: str
) -> None:
    made = _create(client, package)
    kfp_server.faults = [Fault(fault, "DELETE")]
    with pytest.raises(ClusterError):
        schedule.delete(client, "parts")
    assert list(kfp_server.schedules) == [made]


def test_the_commands_schedule_list_pause_resume_and_delete(
    kfp_server: KfpServer, recipe_file: Path, call: Call
) -> None:
    host = ("--host", kfp_server.address)
    code, out, _ = call("schedule", "parts.yaml", "--cron", "30 2 * * mon-fri", "--image-tag", "1.0", *host)
    assert code == 0 and out.startswith("scheduled: parts, cron '30 2 * * mon-fri', version ")
    assert call("schedule", "list", *host)[:2] == (0, f"{'parts':24} on      cron '30 2 * * mon-fri'\n")
    assert call("schedule", "pause", "parts", *host)[:2] == (0, "paused: parts\n")
    assert "paused" in call("schedule", "list", *host)[1]
    assert call("schedule", "resume", "parts", *host)[:2] == (0, "resumed: parts\n")
    assert call("schedule", "parts.yaml", "--every", "90m", "--image-tag", "1.0", *host)[0] == 0
    assert call("schedule", "list", *host)[1] == f"{'parts':24} on      every 90m\n"
    assert call("schedule", "delete", "parts", *host)[:2] == (0, "deleted: parts\n")
    code, out, err = call("schedule", "pause", "parts", *host)
    assert (code, out, err) == (2, "", "error: parts: no such schedule; there is none\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of --cron and --every"),
        (["--cron", "30 2 * * *", "--every", "1d"], "give one of --cron and --every"),
        (["--cron", "30 2 * *"], "expected five fields"),
        (["--cron", "61 2 * * *"], "'61' is no minute; it takes 0 to 59"),
        (["--cron", "0 9 * * mon-xyz"], "'mon-xyz' is no day of week"),
        (["--cron", "*/0 9 * * *"], "'*/0' is no minute"),
        (["--cron", "5-1 9 * * *"], "'5-1' is no minute"),
        (["--every", "often"], "--every 'often': expected a number with m, h or d"),
        (["--every", "0m"], "--every '0m'"),
        (["--every", "99999d"], "--every '99999d'"),
        (["--every", "1d", "--set", "data.path=here.npz"], "data_path is here.npz, a file of this machine"),
    ],
)
def test_wrong_schedules_are_refused_in_one_line(
    kfp_server: KfpServer, recipe_file: Path, call: Call, arguments: list[str], says: str
) -> None:
    code, out, err = call("schedule", "parts.yaml", *arguments, "--host", kfp_server.address)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert kfp_server.schedules == {}


def test_another_image_is_another_version_of_the_schedule(
    kfp_server: KfpServer, client: Client, package: Package, recipe_file: Path, tmp_path: Path
) -> None:
    from mlites.recipe import load_recipe

    _create(client, package)
    _create(client, make_package(load_recipe(recipe_file), tmp_path / "p.yaml", Images(tag="1.0-other")))
    (kept,) = kfp_server.schedules.values()
    assert list(kfp_server.versions)[-1] == kept.pipeline_version_reference.pipeline_version_id
