"""Reading a recipe: strict YAML, overrides, and one line for each mistake."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mlites.errors import InputError
from mlites.recipe.profiles import resolve_profile
from mlites.recipe.recipe import Recipe
from mlites.recipe.strict_yaml import explain, read_mapping


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    Relative local paths in it are taken from the current folder, but that of a hardware profile from the recipe's.

    Args:
        path: YAML file.
        overrides: ``key=value`` with dots between levels, as in ``teacher.training.epochs=3``; values are YAML.

    Raises:
        InputError: with file, line, field, rule and what would be right.
    """
    content, root = read_mapping(path, "recipe", "name, data, teacher and candidates")
    _open_profile(content)
    for override in overrides or []:
        _override(content, override)
        _open_profile(content)
    if "hardware" in content:
        content["hardware"] = resolve_profile(content["hardware"], path.parent)
    try:
        return Recipe.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise InputError(explain(path, root, error)) from None


def _open_profile(content: dict[str, Any]) -> None:
    """Write a profile's name so that an override may go into it."""
    if isinstance(content.get("hardware"), str):
        content["hardware"] = {"profile": content["hardware"]}


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set {override}: expected key=value, for example teacher.training.epochs=3")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        if isinstance(place, list) and parent.isdecimal() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict):
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
        else:
            raise InputError(f"--set {override}: there is no {parent!r} in the recipe to go into")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = parsed
    elif isinstance(place, dict):
        place[last] = parsed
    else:
        raise InputError(f"--set {override}: there is no {last!r} in the recipe to set")
