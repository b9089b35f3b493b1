"""mlites release, sign, promote, rollback, releases, diff, prune and settle: what is served, and how it gets there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlites.errors import InputError

if TYPE_CHECKING:
    from mlites.serving.channel import Channel
    from mlites.storage import Store

_channel = click.Choice(["staging", "canary", "production"])


@contextmanager
def _servers() -> Iterator["Store"]:
    """The store, with the environment leading to it and to Triton; what servers fail at is one line and exit code 1."""
    from mlites import stack

    os.environ.update(stack.up(lambda line: click.echo(line, err=True)))
    from mlites.serving.lock import Busy
    from mlites.serving.server import TritonRefused
    from mlites.serving.steps import PromotionFailed
    from mlites.storage import PreconditionFailed, Store

    try:
        yield Store.open(os.environ["MLITES_STORE"])
    except (Busy, PromotionFailed, TritonRefused, PreconditionFailed) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


def _say(step: str, words: str) -> None:
    click.echo(f"{step + ':':12} {words}", err=True)


def _resolve(store: "Store", reference: str) -> tuple[str, str]:
    """Model and whole digest of MODEL, MODEL@DIGEST or MODEL@CHANNEL; MODEL alone is its last release."""
    from mlites.serving.channel import CHANNELS, read_channel
    from mlites.serving.release import find_release, list_releases

    model, _, which = reference.partition("@")
    if which in CHANNELS:
        pointer = read_channel(store, model, which)
        if pointer is None:
            raise InputError(f"{which} of {model} has no release; see: mlites releases {model}")
        return model, pointer.digest
    if which:
        return model, find_release(store, model, which)
    listed = list_releases(store, model)
    if not listed:
        raise InputError(f"{model} has no releases in {store.uri}; check the name, or make one: mlites release")
    return model, listed[-1].release.digest


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Of the model in Triton.")
@click.option(
    "--data", "-d", type=click.Path(path_type=Path), required=True, help="npz: x, as the model reads it, and y."
)
@click.option("--recipe", "-r", type=click.Path(path_type=Path), help="Its serving section and threads are taken.")
def release(folder: Path, name: str, data: Path, recipe: Path | None) -> None:
    """Make a release of FOLDER (model.onnx and model.json), and print its digest. Nothing is served by that.

    Rows of DATA, 256 at most, become the golden samples. The classes that the model gives all of them are what `mlites
    watch` compares the served ones with. With MLITES_SIGNING_KEY the release is signed.
    """
    from mlites.hardware.measure import read_sample
    from mlites.models.card import read_card
    from mlites.recipe import Serving, load_recipe
    from mlites.serving.deploy import facts_of_rows
    from mlites.serving.release import GOLDEN_ROWS, make_release

    checked = load_recipe(recipe) if recipe else None
    classes, sample = read_card(folder).classes, read_sample(data)
    facts = facts_of_rows(folder, sample.inputs, sample.labels)
    labels = None
    if sample.labels is not None:
        labels = tuple(classes[label] for label in sample.labels[:GOLDEN_ROWS])
    with _servers() as store:
        made = make_release(
            store,
            folder,
            name,
            serving=checked.serving if checked else Serving(),
            rows=sample.inputs[:GOLDEN_ROWS],
            labels=labels,
            threads=checked.hardware.threads if checked else 1,
            **facts,
        )
    click.echo(f"{name}@{made.digest}")


@click.command()
@click.argument("reference", metavar="MODEL[@DIGEST]")
def sign(reference: str) -> None:
    """Sign a release with the key that MLITES_SIGNING_KEY names, a secret key of minisign."""
    from mlites.serving.release import MANIFEST, release_prefix
    from mlites.serving.signature import sign

    with _servers() as store:
        model, digest = _resolve(store, reference)
        if not sign(store, f"{release_prefix(model, digest)}/{MANIFEST}"):
            raise InputError("MLITES_SIGNING_KEY is not set; it names the file of a secret key: mlites key FILE")
    click.echo(f"{model}@{digest} is signed")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def key(file: Path) -> None:
    """Make a pair of keys for signatures: FILE is secret, FILE.pub goes to those who serve."""
    from mlites.serving.signature import make_keys

    public = file.with_name(f"{file.name}.pub")
    make_keys(file, public)
    click.echo(f"{file} signs (MLITES_SIGNING_KEY), {public} is trusted (MLITES_TRUSTED_KEYS)")


@click.command()
@click.argument("reference", metavar="MODEL[@DIGEST]")
@click.option("--to", "channel", type=_channel, required=True, help="The channel that will point to the release.")
def promote(reference: str, channel: "Channel") -> None:
    """Bring a release into service, if it proves itself; otherwise say why and leave everything as it was.

    MODEL alone means its last release, MODEL@staging what staging points to. Exit codes: 0 in service, 1 not, and what
    was served before still is, 2 wrong input.
    """
    from mlites.serving.promote import promote

    with _servers() as store:
        model, digest = _resolve(store, reference)
        promoted = promote(store, model, digest, channel, say=_say)
    pointer = promoted.pointer
    click.echo(f"{channel}: {model}@{digest[:12]} is served as {pointer.served_as}, version {pointer.version}")


@click.command()
@click.argument("model")
@click.option("--to", "digest", help="Release to go back to; default: the one before.")
@click.option("--channel", type=_channel, default="production", show_default=True)
def rollback(model: str, digest: str | None, channel: "Channel") -> None:
    """Serve again what a channel pointed to before, without trials: it has proved itself."""
    from mlites.serving.promote import rollback
    from mlites.serving.release import find_release

    with _servers() as store:
        whole = find_release(store, model, digest) if digest else None
        pointer = rollback(store, model, whole, channel, say=_say).pointer
    click.echo(f"{channel}: {model}@{pointer.digest[:12]} is served as {pointer.served_as}, version {pointer.version}")


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="All that is known, for programs.")
def releases(model: str, as_json: bool) -> None:
    """List the releases of MODEL and what happened to them."""
    from mlites.serving.channel import CHANNELS, history, read_channels, refusals
    from mlites.serving.release import list_releases

    with _servers() as store:
        listed, pointers, refused = list_releases(store, model), read_channels(store, model), refusals(store, model)
        events = [one for channel in CHANNELS for one in history(store, model, channel)]
    if not listed and not pointers:
        raise InputError(f"{model} has no releases in {store.uri}; check the name")
    if as_json:
        content: dict[str, Any] = {
            "releases": [{**one.release.model_dump(mode="json"), "made": one.made.isoformat()} for one in listed],
            "channels": {channel: one.model_dump(mode="json") for channel, one in pointers.items()},
            "history": [one.model_dump(mode="json") for one in sorted(events, key=lambda one: one.at)],
            "refused": refused,
        }
        click.echo(json.dumps(content, indent=2))
        return
    click.echo(f"{'release':14} {'made':17} {'accuracy':>8} {'KiB':>8}  served")
    for one in reversed(listed):
        digest, accuracy = one.release.digest, one.release.metrics.get("accuracy", one.release.golden.accuracy)
        where = [f"{channel} (version {at.version})" for channel, at in pointers.items() if at.digest == digest]
        if digest in refused and not where:
            where = [f"refused: {refused[digest]['reason']}"]
        click.echo(
            f"{digest[:12]:14} {one.made:%Y-%m-%d %H:%M} {'-' if accuracy is None else f'{accuracy:.2%}':>9} "
            f"{one.release.objects['model.onnx'].size / 1024:8.1f}  {', '.join(where)}"
        )
    for event in sorted(events, key=lambda one: one.at):
        why = f": {event.reason}" if event.reason else ""
        click.echo(
            f"{event.at:%Y-%m-%d %H:%M:%S}  {event.channel} {event.event} {event.digest[:12]} by {event.by}{why}"
        )


@click.command()
@click.argument("model")
@click.argument("old")
@click.argument("new")
def diff(model: str, old: str, new: str) -> None:
    """Tell what differs between two releases of MODEL, each a digest or a channel's name."""
    from mlites.serving.release import differences, read_release

    with _servers() as store:
        pair = [read_release(store, *_resolve(store, f"{model}@{which}")) for which in (old, new)]
    found = differences(*pair)
    for path, (before, after) in found.items():
        click.echo(f"{path}: {_short(before)} -> {_short(after)}")
    if not found:
        click.echo(f"both are {model}@{pair[0].digest[:12]}")


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


@click.command()
@click.argument("model")
@click.option("--keep", type=int, default=5, show_default=True, help="The last releases, beside all in use.")
def prune(model: str, keep: int) -> None:
    """Remove old releases of MODEL, and version folders that Triton does not load.

    What a channel points to, and what it would go back to, always stays.
    """
    from mlites.serving.prune import prune

    with _servers() as store:
        gone = prune(store, model, keep)
    for digest in gone.releases:
        click.echo(f"removed {model}@{digest[:12]}")
    for name, versions in gone.versions.items():
        click.echo(f"removed versions {', '.join(map(str, versions))} of {name} from Triton's repository")
    if not gone.releases and not gone.versions:
        click.echo("nothing to remove")


@click.command()
def settle() -> None:
    """Make what Triton loads at its next start agree with the channels; for an init container before Triton.

    `mlites stack up` does it before it starts Triton.
    """
    from mlites.serving.versions import agree_all
    from mlites.storage import DEFAULT_STORE, Store

    for line in agree_all(Store(os.environ.get("MLITES_STORE") or DEFAULT_STORE)):
        click.echo(line)


COMMANDS = (release, sign, key, promote, rollback, releases, diff, prune, settle)
