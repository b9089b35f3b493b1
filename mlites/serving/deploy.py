"""Deployment by the pipeline: the selected model becomes a release, and the release is promoted to production."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.errors import InputError
from mlites.files import digest_json
from mlites.recipe.recipe import Serving
from mlites.serving.channel import read_channel
from mlites.serving.promote import Promoted, promote
from mlites.serving.release import expected_logits, make_release
from mlites.serving.repository import model_key
from mlites.serving.server import Triton
from mlites.serving.steps import Say
from mlites.storage import Store

FORMAT = "mlites-deployment/1"


def deploy(
    store: Store,
    folder: Path,
    name: str,
    serving: Serving,
    golden: NDArray[np.float32],
    *,
    labels: tuple[str, ...] | None = None,
    triton: Triton | None = None,
    threads: int = 1,
    say: Say = lambda step, words: None,
    **facts: Any,
) -> dict[str, Any]:
    """Release an ONNX model folder and promote it to production.

    The version before stays loaded beside it, for callers that name it. The release that is in production already
    keeps its number; it is verified and asked again.

    Args:
        store: holds releases, channels and Triton's repository.
        folder: ``model.onnx`` and ``model.json``.
        name: of the model in Triton.
        serving: the recipe's serving section.
        golden: preprocessed inputs (n, ...) that the served model is asked, at least one.
        labels: names of their classes (n,).
        triton: the server that reads this repository; by default the environment's.
        threads: of one instance's ONNX Runtime session.
        say: told of each step.
        facts: of the release: see `make_release`.

    Returns:
        The deployment document.

    Raises:
        InputError: not an ONNX model folder, no S3 or no Triton at the given addresses.
        Busy: another promoter is at work, or was faster.
        PromotionFailed: the release does not prove itself; what was served before is.
    """
    triton = triton or Triton.from_environment()
    triton.check()
    production = read_channel(store, name, "production")
    parent = production.digest if production else None
    release = make_release(
        store, folder, name, serving=serving, rows=golden, labels=labels, threads=threads, parent=parent, **facts
    )
    return document(store, triton, promote(store, name, release.digest, triton=triton, say=say))


def release_facts(selection: dict[str, Any], recipe: dict[str, Any], data_digest: str) -> dict[str, Any]:
    """What a release keeps of the run that made it.

    Args:
        selection: the selection document.
        recipe: the whole recipe, as JSON values.
        data_digest: of the prepared data.
    """
    (chosen,) = (one for one in selection["candidates"] if one["candidate"] == selection["selected"])
    figures = ("accuracy", "accuracy_drop_points", "ece", "speedup", "size_bytes", "size_ratio", "peak_memory_bytes")
    metrics = {name: chosen[name] for name in figures if chosen.get(name) is not None}
    counts = np.asarray(chosen["confusion"]).sum(axis=0)
    return {
        "metrics": {**metrics, "latency_ms": chosen["latency_ms"]},
        "reference": dict(zip(chosen["classes"], counts.tolist(), strict=True)),
        "data_digest": data_digest,
        "recipe": {"name": recipe["name"], "digest": digest_json(recipe)},
        "git_commit": os.environ.get("MLITES_GIT_COMMIT") or None,
    }


def facts_of_rows(folder: Path, rows: NDArray[np.float32], labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """What a release keeps of rows that an ONNX model folder is judged by, where there was no run.

    Args:
        folder: ``model.onnx`` and ``model.json``.
        rows: as the model reads them (n, ...).
        labels: true classes (n,), where they are known.

    Raises:
        InputError: rows or labels that do not fit the model.
    """
    card, logits = expected_logits(folder, rows)
    predicted, count = logits.argmax(1), len(card.classes)
    reference = dict(zip(card.classes, np.bincount(predicted, minlength=count).tolist(), strict=True))
    if labels is None:
        return {"reference": reference}
    outside = labels[(labels < 0) | (labels >= count)]
    if len(outside):
        raise InputError(f"labels must be 0 to {count - 1}, as {folder} knows {count} classes, got {outside[0]}")
    return {"reference": reference, "metrics": {"accuracy": float((predicted == labels).mean())}}


def document(store: Store, triton: Triton, promoted: Promoted) -> dict[str, Any]:
    """The deployment document of what a promotion brought into service."""
    release, pointer = promoted.fetched.release, promoted.pointer
    return {
        "format": FORMAT,
        "status": "deployed",
        "model": pointer.served_as,
        "version": pointer.version,
        "release": release.digest,
        "repository": f"{store.uri}/{model_key(pointer.served_as)}",
        "sha256": release.objects["model.onnx"].sha256,
        "model_digest": release.model_digest,
        "triton_url": triton.url,
        "grpc_url": triton.grpc,
        "previous_version": promoted.previous_version,
        "previous_release": pointer.previous,
        "golden": dataclasses.asdict(promoted.golden),
        "findings": list(promoted.findings),
        "reasons": [],
    }


def declined(selection: dict[str, Any], name: str) -> dict[str, Any]:
    """The deployment document of a selection that the gate turned down: nothing was touched, and why."""
    reasons = [
        reason
        for candidate in selection["candidates"]
        if candidate["candidate"] == selection["selected"]
        for reason in candidate["reasons"]
    ]
    return {
        "format": FORMAT,
        "status": "rejected",
        "model": name,
        "version": None,
        "release": None,
        "repository": None,
        "sha256": None,
        "model_digest": selection["model"],
        "triton_url": None,
        "grpc_url": None,
        "previous_version": None,
        "previous_release": None,
        "golden": None,
        "findings": [],
        "reasons": reasons or [selection["reason"]],
    }
