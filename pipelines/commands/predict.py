"""mlites predict and watch: ask a served model, and look at what it does."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlites.errors import InputError

if TYPE_CHECKING:
    import subprocess

    from mlites.serving.channel import Channel
    from mlites.serving.predictions import Predictions
    from mlites.serving.watch import Sight, Watcher
    from mlites.storage import Store

_channel = click.option(
    "--channel", type=click.Choice(["staging", "canary", "production"]), default="production", show_default=True
)


@contextmanager
def _servers() -> Iterator["Store"]:
    """The store; what servers fail at is one line and exit code 1."""
    from mlites import stack

    os.environ.update(stack.up(lambda line: click.echo(line, err=True)))
    from mlites.serving.client import PredictionFailed, store_from_environment
    from mlites.serving.server import TritonRefused

    try:
        yield store_from_environment()
    except (PredictionFailed, TritonRefused) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


@click.command()
@click.argument("model")
@click.option("--input", "-i", "source", required=True, help="npz, npy, csv, parquet, an image or a folder; or s3://.")
@click.option("--label", help="Column of a table that is no feature.")
@_channel
@click.option("--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True)
@click.option("--top", type=click.IntRange(1, 1000), default=3, show_default=True, help="Classes to tell of each row.")
@click.option("--raw", is_flag=True, help="Let the server preprocess, where the recipe has preprocessing: server.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Seconds.")
@click.option("--log-samples", is_flag=True, help="Write the predictions to the sample log that `watch` reads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def predict(
    model: str,
    source: str,
    label: str | None,
    channel: "Channel",
    protocol: Literal["grpc", "http"],
    top: int,
    raw: bool,
    deadline: float,
    log_samples: bool,
    as_json: bool,
) -> None:
    """Ask the served MODEL for the classes of rows, with their probabilities.

    Rows are given as the training data held them; the release's manifest says how they are normalised. An npz holds an
    array x; images are brought to the model's size.

    Exit codes: 0 answered, 2 wrong input, 1 no answer.
    """
    with _servers() as store, tempfile.TemporaryDirectory() as scratch:
        from mlites.serving.client import Client
        from mlites.serving.inputs import read_inputs
        from mlites.serving.samples import SampleLog
        from mlites.storage import fetch

        samples = SampleLog(store, model) if log_samples else None
        with Client(
            model,
            channel=channel,
            store=store,
            protocol=protocol,
            preprocessing="server" if raw else "client",
            deadline_s=deadline,
            samples=samples,
        ) as client:
            if raw and client.release.serving.preprocessing != "server":
                raise InputError(f"{model}: its recipe has no serving.preprocessing: server; leave out --raw")
            inputs = read_inputs(fetch(source, Path(scratch)), client.release, label)
            found = client.predict(inputs.rows)
        if samples and samples.failures:
            click.echo("note: the sample log could not be written", err=True)
    if as_json:
        click.echo(json.dumps(_document(found, inputs.names, top), ensure_ascii=False))
        return
    width = min(max(map(len, (*inputs.names, "row"))), 60)
    label_width = min(max(map(len, (*found.labels, "class"))), 40)
    click.echo(f"{'row':{width}}  {'class':{label_width}}  probability")
    for name, ranked in zip(inputs.names, found.top(top), strict=True):
        (first, probability), *others = ranked
        more = "".join(f"  {other} {share:.1%}" for other, share in others)
        click.echo(f"{name:{width}}  {first:{label_width}}  {probability:11.1%}{more}")
    click.echo(
        f"{model} version {found.version} ({found.channel}, release {found.digest[:12]}): {len(found.labels)} rows in "
        f"{found.milliseconds:.1f} ms",
        err=True,
    )


def _document(found: "Predictions", names: tuple[str, ...], top: int) -> dict[str, Any]:
    return {
        "model": found.model,
        "channel": found.channel,
        "version": found.version,
        "release": found.digest,
        "milliseconds": round(found.milliseconds, 3),
        "rows": [
            {
                "name": name,
                "class": ranked[0][0],
                "probability": ranked[0][1],
                "top": [{"class": label, "probability": probability} for label, probability in ranked],
            }
            for name, ranked in zip(names, found.top(top), strict=True)
        ],
    }


@click.command()
@click.argument("model")
@_channel
@click.option("--every", type=click.FloatRange(0.2), default=5.0, show_default=True, help="Seconds between two looks.")
@click.option("--window", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="Minutes.")
@click.option("--psi", type=click.FloatRange(0), default=0.2, show_default=True, help="Limit of the drift.")
@click.option("--p95", type=click.FloatRange(0, min_open=True), help="Limit of the latency, ms; default: the recipe's.")
@click.option("--failures", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Limit of their share.")
@click.option("--least-rows", type=click.IntRange(1), default=100, show_default=True, help="Before drift is judged.")
@click.option("--once", is_flag=True, help="Look once, and say by the exit code whether all is well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document for each look.")
@click.option("--on-drift", metavar="COMMAND", help="Run this when the predictions drift, as `mlites submit R.yaml`.")
@click.option(
    "--again-after", type=click.FloatRange(0), default=24.0, show_default=True, help="Hours, for one release."
)
def watch(
    model: str,
    channel: "Channel",
    every: float,
    window: float,
    psi: float,
    p95: float | None,
    failures: float,
    least_rows: int,
    once: bool,
    as_json: bool,
    on_drift: str | None,
    again_after: float,
) -> None:
    """Show what the served MODEL does: requests, failures and latency by Triton's counters, drift by the sample log.

    Live on a terminal, a line for each look elsewhere. Callers write the log by `mlites predict --log-samples`, or by
    mlites.serving.client.Client with a SampleLog. COMMAND runs once for a release in `--again-after` hours, however
    many watch; what was seen is in its variable MLITES_WATCH.

    Exit codes: 0 all is well, 3 (with --once) a limit is exceeded, 2 wrong input, 1 COMMAND failed.
    """
    with _servers() as store:
        from mlites.serving.watch import Limits, Watcher

        limits = Limits(psi=psi, p95_ms=p95, failures=failures, least_rows=least_rows)
        watcher = Watcher(store, model, channel, minutes=window, limits=limits)
        reaction = _Reaction(store, on_drift, timedelta(hours=again_after))
        if once:
            sight = watcher.look()
            _print(sight, as_json)
            code = reaction.react(sight, wait=True)
            raise SystemExit(1 if code else 3 if sight.alarms else 0)
        _keep_watching(watcher, reaction, every, as_json)


class _Reaction:
    """What is done about drift."""

    def __init__(self, store: "Store", command: str | None, again_after: timedelta) -> None:
        self._store, self._command, self._again_after = store, command, again_after
        self._running: subprocess.Popen[bytes] | None = None

    def react(self, sight: "Sight", *, wait: bool = False) -> int:
        """Start the command if it is time to; its exit code, 0 while it runs or where there is none."""
        from mlites.serving.watch import start_command, take_turn

        code = 0
        if self._running is not None and self._running.poll() is not None:
            code, self._running = self._running.returncode, None
            click.echo(f"on drift: {self._command} ended with {code}", err=True)
        due = sight.drifted and self._running is None
        if self._command and due and take_turn(self._store, sight, self._again_after):
            click.echo(f"on drift: {self._command}", err=True)
            self._running = start_command(self._command, sight)
            code = self._running.wait() if wait else 0
        return code


def _keep_watching(watcher: "Watcher", reaction: _Reaction, every: float, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from pipelines.watched import draw

    console = Console()
    if as_json or not console.is_terminal:
        while True:
            sight = watcher.look()
            _print(sight, as_json)
            reaction.react(sight)
            time.sleep(every)
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            sight = watcher.look()
            live.update(draw(sight), refresh=True)
            reaction.react(sight)
            time.sleep(every)


def _print(sight: "Sight", as_json: bool) -> None:
    from pipelines.watched import line

    click.echo(json.dumps(sight.to_json(), ensure_ascii=False) if as_json else line(sight))
    if not as_json:
        for alarm in sight.alarms:
            click.echo(f"alarm: {alarm}", err=True)


COMMANDS = (predict, watch)
