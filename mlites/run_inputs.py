"""What a run in a cluster starts from: digests of what its inputs hold now, and whether an earlier run had the same."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlites.errors import InputError
from mlites.files import canonical_json, digest_json
from mlites.recipe import Recipe
from mlites.storage import MissingObject, Store, remote_digest

FORMAT = "mlites-schedule/1"


@dataclass(frozen=True)
class RunInputs:
    """Digests of a run's inputs.

    Attributes:
        data: of the data and the reference that it is compared with.
        teacher: of the user's model or weights, empty where the teacher is trained.
        digest: of these, the recipe, and what else decides the result.
        same_as: the last run that came to a verdict with these inputs.
    """

    data: str
    teacher: str
    digest: str
    same_as: str | None


def look_up(
    store: Store, recipe: Recipe, data: str, reference: str, teacher: str, decides: dict[str, Any]
) -> RunInputs:
    """Find out what stands at the inputs' addresses now; nothing is downloaded.

    Args:
        store: remembers which inputs were judged last.
        recipe: the whole recipe.
        data: s3:// address, empty for built-in data.
        reference: s3:// address, or empty.
        teacher: s3:// address, or empty.
        decides: what else decides the result, such as the seed.

    Raises:
        InputError: nothing stands there, or the address is one of a local file.
    """
    found = _digest("data_path", data) if data else _built_in(recipe)
    if reference:
        found = digest_json([found, _digest("reference_path", reference)])
    given = _digest("teacher_path", teacher) if teacher else ""
    asked = recipe.model_dump(mode="json", by_alias=True, exclude={"cluster"})
    digest = digest_json({"data": found, "teacher": given, "recipe": asked, **decides})
    last = read_last(store, recipe.name)
    return RunInputs(found, given, digest, last["run"] if last and last["inputs"] == digest else None)


def remember(store: Store, recipe: str, digest: str, run: str) -> None:
    """Note that a run came to a verdict with these inputs."""
    store.put(f"schedules/{recipe}.json", canonical_json({"format": FORMAT, "inputs": digest, "run": run}))


def read_last(store: Store, recipe: str) -> dict[str, Any] | None:
    """The last run of a recipe that came to a verdict, and the digest of its inputs."""
    try:
        document: dict[str, Any] = json.loads(store.get(f"schedules/{recipe}.json"))
    except MissingObject:
        return None
    return document if document.get("format") == FORMAT else None


def _digest(parameter: str, address: str) -> str:
    if not address.startswith("s3://"):
        raise InputError(f"{parameter} is {address}, which a cluster cannot see; give s3://bucket/key")
    return remote_digest(address)


def _built_in(recipe: Recipe) -> str:
    from mlites.data.prepare import source_digest

    return source_digest(recipe.data) if recipe.data.path is None else _digest("data_path", str(Path(recipe.data.path)))
