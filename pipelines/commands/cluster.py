"""mlites compile, submit and schedule: a recipe in a Kubeflow cluster."""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import yaml

from mlites.errors import InputError
from mlites.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from pipelines.cluster.client import Client
    from pipelines.cluster.package import Package

RECIPES = Path(__file__).parents[1] / "recipes"
ACCOUNT = "mlites-pipeline"

F = TypeVar("F", bound=Callable[..., Any])


def _options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_recipe = _options(
    click.argument("recipe", type=click.Path(path_type=Path)),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a field. Repeatable."),
    click.option("--profile", "-p", help="Hardware profile in place of the recipe's: a shipped one, or a YAML file."),
    click.option("--image-tag", help="Tag of the images, as make images says; a tag that moves is refused."),
    click.option("--image-registry", help="host[:port][/path] where the cluster finds the images."),
    click.option("--store", default="s3://mlites", show_default=True, help="Bucket and prefix of models and runs."),
)
_server = _options(
    click.option("--host", help="Address of Kubeflow Pipelines; default MLITES_KFP_HOST, in a pod the cluster's own."),
    click.option("--namespace", help="Yours, where Kubeflow serves several users; default MLITES_KFP_NAMESPACE."),
    click.option("--ca", type=click.Path(path_type=Path), help="PEM bundle to trust; default MLITES_KFP_CA."),
)
_run = _options(
    click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A run's parameter. Repeatable."),
    click.option("--upload", is_flag=True, help="Put local data and models into the store first."),
    click.option("--service-account", default=ACCOUNT, show_default=True, help="Of the tasks' pods."),
)


@click.command("compile")
@_recipe
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="IR file to write, .yaml.")
def compile_(recipe: Path, output: Path, **settings: Any) -> None:
    """Write the pipeline of RECIPE for a Kubeflow cluster."""
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {output}: KFP takes .yaml; name the file {output.with_suffix('.yaml')}")
    package, _ = _package(recipe, output, settings)
    click.echo(f"{output}: {output.stat().st_size} bytes, version {package.version}")
    from pipelines.cluster.package import local_paths

    for name, path in local_paths(package.parameters).items():
        click.echo(f"note: {name} is {path}, which a cluster cannot see; give s3://... when you start it", err=True)


@click.command()
@_recipe
@_server
@_run
@click.option("--wait", is_flag=True, help="Show the tasks as they end, and then the verdict.")
def submit(recipe: Path, wait: bool, **settings: Any) -> None:
    """Run RECIPE in a Kubeflow cluster.

    Its pipeline gets a version by content: what is there already is used again. Credentials come from MLITES_KFP_TOKEN,
    MLITES_KFP_TOKEN_FILE or MLITES_KFP_COOKIE; in a pod of the cluster from its service account.

    Exit codes with --wait: 0 deployed, 3 rejected by the gate, 2 wrong input, 1 failed; without it 0 once it runs.
    """
    with tempfile.TemporaryDirectory() as work:
        package, checked = _package(recipe, Path(work) / "pipeline.yaml", settings)
        parameters = _parameters(package, settings)
        client = _connect(settings)
        from pipelines.cluster.submit import start_run

        run = f"{checked.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        run_id = start_run(client, package, run, parameters, settings["service_account"])
    click.echo(f"run:      {run} ({client.access.host}/#/runs/details/{run_id})")
    if wait:
        _follow(client, package, run, run_id, str(parameters.get("store", settings["store"])))


class _OrCreate(click.Group):
    """A group whose first word may be a recipe: then it is `create`."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        if arguments and arguments[0] not in self.commands and arguments[0] not in ("-h", "--help"):
            arguments = ["create", *arguments]
        return super().parse_args(context, arguments)


@click.group(cls=_OrCreate)
def schedule() -> None:
    """Run a recipe by itself: mlites schedule RECIPE --cron '30 2 * * *', or --every 6h.

    A scheduled run ends early where the data, the recipe and the code are those of the last verdict. Never two runs of
    a recipe at once; what was missed is not caught up with. Names of recipes go for the other commands.
    """


@schedule.command("create")
@_recipe
@_server
@_run
@click.option("--cron", help="Five fields, or six with seconds first; in the time zone of Kubeflow, UTC by default.")
@click.option("--every", help="A number with m, h or d: 30m, 6h, 1d.")
def create_(recipe: Path, cron: str | None, every: str | None, **settings: Any) -> None:
    """Schedule RECIPE in place of its schedule so far."""
    from pipelines.cluster.trigger import in_words, read_cron, read_every

    if (cron is None) == (every is None):
        raise InputError("give one of --cron and --every: when shall it run?")
    fields, seconds = (read_cron(cron) if cron else None), (read_every(every) if every else None)
    with tempfile.TemporaryDirectory() as work:
        package, checked = _package(recipe, Path(work) / "pipeline.yaml", settings)
        parameters = _parameters(package, settings)
        client = _connect(settings)
        from pipelines.cluster.schedule import create

        account = settings["service_account"]
        create(client, package, cron=fields, seconds=seconds, parameters=parameters, service_account=account)
    click.echo(f"scheduled: {checked.name}, {in_words(fields, seconds)}, version {package.version}")


@schedule.command("list")
@_server
def list_(**settings: Any) -> None:
    """Show all schedules."""
    client = _connect(settings)
    from pipelines.cluster.schedule import schedules

    for one in schedules(client):
        click.echo(f"{one.recipe:24} {'on' if one.enabled else 'paused':7} {one.trigger}")


@schedule.command()
@click.argument("name")
@_server
def pause(name: str, **settings: Any) -> None:
    """Let the schedule of recipe NAME fire no more until it is resumed."""
    client = _connect(settings)
    from pipelines.cluster.schedule import pause

    pause(client, name)
    click.echo(f"paused: {name}")


@schedule.command()
@click.argument("name")
@_server
def resume(name: str, **settings: Any) -> None:
    """Let the paused schedule of recipe NAME fire again."""
    client = _connect(settings)
    from pipelines.cluster.schedule import resume

    resume(client, name)
    click.echo(f"resumed: {name}")


@schedule.command()
@click.argument("name")
@_server
def delete(name: str, **settings: Any) -> None:
    """Remove the schedule of recipe NAME; its runs stay."""
    client = _connect(settings)
    from pipelines.cluster.schedule import delete

    delete(client, name)
    click.echo(f"deleted: {name}")


def _package(recipe: Path, output: Path, settings: dict[str, Any]) -> "tuple[Package, Recipe]":
    shipped = RECIPES / f"{recipe}.yaml"
    place = shipped if not recipe.is_file() and shipped.is_file() else recipe
    profile = [f"hardware={settings['profile']}"] if settings["profile"] else []
    checked = load_recipe(place, [*profile, *settings["overrides"]])
    from mlites.storage import parse_uri
    from pipelines.cluster.package import Images, make_package

    parse_uri(settings["store"])

    images = Images(settings["image_registry"], settings["image_tag"])
    return make_package(checked, output, images, settings["store"]), checked


def _parameters(package: "Package", settings: dict[str, Any]) -> dict[str, Any]:
    """The run's parameters that differ from their defaults; local files go to the store where that is wanted."""
    from mlites.storage import Store
    from pipelines.cluster.submit import check_parameters, upload_inputs

    given: dict[str, Any] = {}
    for one in settings["params"]:
        name, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"--param {one}: expected NAME=VALUE, such as seed=1")
        given[name] = yaml.safe_load(value) if name in ("seed", "budget", "only_if_changed") else value
    if settings["upload"]:
        store = str(given.get("store", settings["store"]))
        given |= upload_inputs(Store.open(store), {**package.parameters, **given})
    check_parameters(package, given)
    return given


def _connect(settings: dict[str, Any]) -> "Client":
    from pipelines.cluster.access import find_access
    from pipelines.cluster.client import Client

    return Client(find_access(settings["host"], settings["namespace"], settings["ca"]))


def _follow(client: "Client", package: "Package", run: str, run_id: str, store: str) -> None:
    from pipelines.cluster.follow import follow, judge, report_address
    from pipelines.progress import Progress

    try:
        with Progress(run) as progress:
            ended = follow(client, run_id, package.labels, progress)
    except KeyboardInterrupt:
        click.echo(f"interrupted: run {run} goes on in the cluster", err=True)
        raise SystemExit(130) from None
    verdict = judge(ended, run, package.labels, store)
    summary = verdict.summary
    if summary is not None and summary.error is not None:
        where = f" in step {summary.failed_step}" if summary.failed_step else ""
        click.echo(f"error: {summary.error}{where}", err=True)
    else:
        why = f": {summary.reason}" if summary and summary.reason else f" ({verdict.why})" if verdict.why else ""
        click.echo(f"{verdict.status}{why}")
    click.echo(f"report:   {report_address(store, run)}")
    raise SystemExit(verdict.code)
