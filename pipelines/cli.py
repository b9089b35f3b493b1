"""The command line: mlites run, check, compile, schema and stack."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlites import __version__
from mlites.errors import InputError
from mlites.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from mlites.stack import Server

RECIPES = Path(__file__).parent / "recipes"

_recipe = click.argument("recipe", type=click.Path(path_type=Path))
_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a field: teacher.training.epochs=3. Repeatable.",
)


def _load(path: Path, overrides: tuple[str, ...]) -> Recipe:
    """A recipe by path, or by name if it is one of those shipped."""
    shipped = RECIPES / f"{path}.yaml"
    return load_recipe(shipped if not path.is_file() and shipped.is_file() else path, list(overrides))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlites")
def cli() -> None:
    """Make a network small and fast enough for your hardware, prove it, and serve it with Triton."""


@cli.command()
@_recipe
@_overrides
@click.option("--fresh", is_flag=True, help="Forget cached results and checkpoints first.")
def run(recipe: Path, overrides: tuple[str, ...], fresh: bool) -> None:
    """Run the pipeline of RECIPE (a file, or a shipped one: digits, fashion-mnist) on this machine.

    Exit codes: 0 deployed, 3 finished but rejected by the gate, 2 wrong input, 1 failed.
    """
    checked = _load(recipe, overrides)
    from pipelines.runner import run_recipe

    code, summary, folder = run_recipe(checked, fresh=fresh)
    best = summary.selected_candidate
    if summary.error is not None:
        where = f" in step {summary.failed_step}" if summary.failed_step else ""
        click.echo(f"error: {summary.error}{where}", err=True)
    elif best and best.accuracy is not None and best.speedup and best.size_ratio and summary.baseline:
        kept = best.accuracy / summary.baseline.accuracy if summary.baseline.accuracy else 0.0
        click.echo(
            f"{summary.status}: {best.name} keeps {kept:.1%} of the teacher's accuracy, "
            f"{best.speedup:.1f}x faster, {1 - 1 / best.size_ratio:.0%} smaller"
        )
        if summary.status == "rejected":
            click.echo(f"why:      {summary.reason}")
        elif summary.deployment:
            served = summary.deployment
            click.echo(f"serving:  {served.triton_url}/v2/models/{served.model}/versions/{served.version}")
    click.echo(f"report:   {folder / 'report.html'}")
    raise SystemExit(code)


@cli.command()
@_recipe
@_overrides
def check(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Tell whether RECIPE is right, and run nothing."""
    checked = _load(recipe, overrides)
    from pipelines.trie import candidate_nodes, nodes

    ends = candidate_nodes(checked.candidates)
    shared = sum(1 for _ in nodes(list(ends.values())))
    click.echo(f"{recipe}: right. {len(ends)} candidates in {shared} compression steps")


@cli.command("compile")
@_recipe
@_overrides
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="IR file to write, .yaml.")
def compile_(recipe: Path, overrides: tuple[str, ...], output: Path) -> None:
    """Write the pipeline of RECIPE for a Kubeflow cluster."""
    checked = _load(recipe, overrides)
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {output}: KFP takes .yaml; name the file {output.with_suffix('.yaml')}")
    from pipelines.compress import build_pipeline, compile_pipeline
    from pipelines.runner import code_digest

    pipeline = build_pipeline(checked, environment={"MLITES_CODE": code_digest()}, local=False)
    compile_pipeline(pipeline, output)
    click.echo(f"{output}: {output.stat().st_size} bytes")
    for parameter, path in (("data_path", checked.data.path), ("reference_path", checked.data.reference)):
        if path and not path.startswith("s3://"):
            click.echo(
                f"note: {parameter} is {path}, which a cluster cannot see; give s3://... when you start it", err=True
            )


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    click.echo(json.dumps(Recipe.model_json_schema(by_alias=True), indent=2))


@cli.group("stack")
def stack_() -> None:
    """The embedded SeaweedFS and Triton on this machine's loopback."""


@stack_.command()
def up() -> None:
    """Start what is not running yet."""
    from mlites import stack

    stack.up(lambda message: click.echo(message, err=True))
    _show_servers(stack.status())


@stack_.command()
def down() -> None:
    """End the servers that this folder's stack started; their data stays."""
    from mlites import stack

    stack.down()
    _show_servers(stack.status())


@stack_.command()
def status() -> None:
    """Tell what runs where, and where it logs; exit 1 if something is down."""
    from mlites import stack

    servers = stack.status()
    _show_servers(servers)
    raise SystemExit(0 if all(server.ready for server in servers) else 1)


def _show_servers(servers: "list[Server]") -> None:
    for server in servers:
        click.echo(server)


def main() -> None:
    """Entry point: wrong input is one line and exit code 2."""
    from mlites.stack import StackFailed

    try:
        cli(standalone_mode=False)
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (
        StackFailed,
        OSError,
    ) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
