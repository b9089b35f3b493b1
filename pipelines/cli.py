"""The command line: mlites run, compress, measure, pack, unpack, check, compile, schema and stack."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlites import __version__
from mlites.errors import InputError, ParityError
from mlites.files import write_atomically
from mlites.recipe import Hardware, Recipe, load_recipe
from pipelines.cluster.errors import ClusterError
from pipelines.commands import cluster

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
        for one in summary.candidates:
            if one.failed:
                click.echo(f"failed:   {one.name} at {one.failed.step}: {one.failed.error}", err=True)
    click.echo(f"report:   {folder / 'report.html'}")
    raise SystemExit(code)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--recipe", "-r", type=click.Path(path_type=Path), required=True, help="Data, candidates and budget.")
@_overrides
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
def compress(model: Path, recipe: Path, overrides: tuple[str, ...], output: Path) -> None:
    """Apply the candidates' passes to MODEL, here and without servers, and measure what comes out.

    MODEL, an mlites model folder or an .onnx file, takes the place of the recipe's teacher. Run again, it goes on where
    it stopped. Nothing is deployed.
    """
    checked = _load(recipe, overrides)
    from pipelines.in_process import compress as compress_model

    selection = compress_model(model, checked, output, lambda line: click.echo(line, err=True))
    click.echo(f"{'candidate':24} {'accuracy':>8} {'kept':>7} {'faster':>7} {'smaller':>7}  budget")
    for one in selection["candidates"]:
        if one.get("failed"):
            click.echo(f"{one['candidate']:24} {one['reasons'][0]}")
            continue
        kept = one["accuracy"] / selection["baseline"]["accuracy"]
        within = "within" if one["within_budget"] else f"over: {'; '.join(one['reasons'])}"
        click.echo(
            f"{one['candidate']:24} {one['accuracy']:8.2%} {kept:7.1%} {one['speedup']:6.2f}x "
            f"{1 - 1 / one['size_ratio']:7.1%}  {within}"
        )
        for warning in one["warnings"]:
            click.echo(f"{'':24} mind: {warning}")
    click.echo(f"\n{selection['reason']}")
    click.echo(f"models:   {output}")


@cli.command("measure")
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option("--profile", "-p", help="Shipped hardware profile, or a YAML file; default: this machine, one thread.")
@click.option(
    "--data",
    "-d",
    type=click.Path(path_type=Path),
    help="npz archive (x, and y if there are labels), or dataset folder.",
)
@click.option("--json", "target", help="Write all figures to this file; - prints them instead of the table.")
def measure_(models: tuple[Path, ...], profile: str, data: Path | None, target: str | None) -> None:
    """Measure ONNX files side by side on this machine, whoever made them; speedups refer to the first.

    Each takes one float32 input. Rows of DATA are given to the models as they are, those of a prepared dataset
    normalised; without it rows are random numbers, and no accuracy is told. Shipped profiles: edge-arm-class, gpu,
    server-1core, server-4core.

    Exit codes: 0 all measured, 2 wrong input: one line for each file that cannot be used, the others are measured.
    """
    from mlites.hardware.measure import measure, read_sample
    from mlites.recipe.profiles import load_profile
    from pipelines.measured import show

    hardware = load_profile(profile) if profile else Hardware()
    document = measure(models, read_sample(data) if data else None, hardware)
    if target == "-":
        click.echo(json.dumps(document, indent=2))
    else:
        show(document)
    if target not in (None, "-"):
        write_atomically(Path(target), json.dumps(document, indent=2) + "\n")
    for one in document["models"]:
        if "error" in one:
            click.echo(f"error: {one['error']}", err=True)
    raise SystemExit(2 if any("error" in one for one in document["models"]) else 0)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Default: beside MODEL, with .packed added.")
def pack(model: Path, output: Path | None) -> None:
    """Code an ONNX file for download, as small as its weights allow; `unpack` restores it bit for bit."""
    from mlites.packing.pack import pack

    content = _read(model)
    packed = pack(content)
    target = output or model.with_name(f"{model.name}.packed")
    write_atomically(target, packed)
    click.echo(f"{target}: {len(packed)} bytes, {len(content) / len(packed):.1f} times smaller")


@cli.command()
@click.argument("packed", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="ONNX file to write.")
def unpack(packed: Path, output: Path) -> None:
    """Restore the ONNX file that was packed, bit for bit."""
    from mlites.packing.pack import unpack

    try:
        content = unpack(_read(packed))
    except InputError as error:
        raise InputError(f"{packed}: {error}") from None
    write_atomically(output, content)
    click.echo(f"{output}: {len(content)} bytes")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from None


@cli.command()
@_recipe
@_overrides
def check(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Tell whether RECIPE is right, and run nothing."""
    checked = _load(recipe, overrides)
    from pipelines.trie import candidate_nodes, nodes

    ends = candidate_nodes(checked.candidates, checked.hardware)
    shared = sum(1 for _ in nodes(list(ends.values())))
    click.echo(f"{recipe}: right. {len(ends)} candidates in {shared} compression steps")


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


cli.add_command(cluster.compile_)
cli.add_command(cluster.submit)
cli.add_command(cluster.schedule)


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
    except (ClusterError, StackFailed, ParityError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
