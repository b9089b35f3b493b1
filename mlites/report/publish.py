"""The files of a run: summary.json, report.html, and details.json from which the page can be drawn again."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlites.files import canonical_json, write_atomically
from mlites.recipe import Recipe
from mlites.report.calls import Signature
from mlites.report.details import Details
from mlites.report.html import render
from mlites.report.summary import Step, Summary, summarize
from mlites.storage import Store


def write_run(
    store: Store, run: str, recipe: Recipe, selection: str, deployment: str, dataset: Path, folder: Path
) -> Summary:
    """Gather the documents of a run that came to its end and write its files.

    Args:
        store: Holds the documents.
        run: Name of the run.
        recipe: The whole recipe.
        selection: Digest of the selection document.
        deployment: Digest of the deployment document.
        dataset: Folder of the prepared data.
        folder: Takes the files.
    """
    selected, deployed = store.get_document(selection), store.get_document(deployment)
    verdicts = [store.get_document(digest) for digest in selected["verdicts"]]
    document = json.loads((dataset / "document.json").read_bytes())
    (chosen,) = (verdict for verdict in verdicts if verdict["candidate"] == selected["selected"])
    signature = Signature(input_shape=document["input_shape"], preprocessing=chosen["preprocessing"])
    details = {
        "recipe_yaml": recipe_yaml(recipe),
        "code_digest": os.environ.get("MLITES_CODE"),
        "data": document,
        "signature": signature,
        "verdicts": verdicts,
    }
    summary = summarize(run, recipe, selected, deployed, document, verdicts)
    _write(folder, summary, Details.model_validate(details))
    return summary


def finish_run(folder: Path, steps: list[Step], overhead_seconds: float | None, git_commit: str | None) -> Summary:
    """Add what only the runner knows to the files that `write_run` wrote."""
    summary = Summary.model_validate_json((folder / "summary.json").read_bytes())
    summary = summary.model_copy(update={"steps": steps, "overhead_seconds": overhead_seconds})
    details = Details.model_validate_json((folder / "details.json").read_bytes())
    _write(folder, summary, details.model_copy(update={"git_commit": git_commit}))
    return summary


def failed_run(
    folder: Path,
    run: str,
    recipe: Recipe,
    error: str,
    step: str | None,
    steps: list[Step],
    overhead_seconds: float | None,
    data: dict[str, Any] | None = None,
    verdicts: Sequence[dict[str, Any]] = (),
) -> Summary:
    """Write the files of a run that failed, with what its earlier steps found.

    Args:
        folder: Takes the files.
        run: Name of the run.
        recipe: The whole recipe.
        error: What failed.
        step: Name of the step that did.
        steps: All that came to their end.
        overhead_seconds: Wall time less the steps' own; None where steps ran side by side.
        data: The data document, if the run came that far.
        verdicts: Of the candidates measured before.
    """
    summary = summarize(run, recipe, None, None, data, list(verdicts), error=error, failed_step=step)
    summary = summary.model_copy(update={"steps": steps, "overhead_seconds": overhead_seconds})
    details = {
        "recipe_yaml": recipe_yaml(recipe),
        "code_digest": os.environ.get("MLITES_CODE"),
        "data": data,
        "verdicts": list(verdicts),
    }
    _write(folder, summary, Details.model_validate(details))
    return summary


def _write(folder: Path, summary: Summary, details: Details) -> None:
    write_atomically(folder / "summary.json", json.dumps(summary.model_dump(mode="json"), indent=2) + "\n")
    write_atomically(folder / "details.json", canonical_json(details.model_dump(mode="json")))
    write_atomically(folder / "report.html", render(summary, details))


def recipe_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults filled in."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)
