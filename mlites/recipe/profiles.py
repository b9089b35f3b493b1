"""Hardware profiles: those that come with mlites, by name, and a user's own, by path."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlites.errors import InputError
from mlites.recipe.hardware import Hardware
from mlites.recipe.strict_yaml import explain, read_mapping

SHIPPED = Path(__file__).parents[1] / "hardware" / "profiles"


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with mlites.

    >>> shipped_profiles()
    ['edge-arm-class', 'gpu', 'server-1core', 'server-4core']
    """
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_profile(name: str, folder: Path = Path()) -> Hardware:
    """Read and check a hardware profile.

    Args:
        name: a shipped one, or the path of a YAML file.
        folder: that a relative path starts from.

    Raises:
        InputError: with file, line, field, rule and what would be right.
    """
    path = SHIPPED / f"{name}.yaml" if name in shipped_profiles() else folder / name
    if not path.is_file():
        raise InputError(
            f"hardware profile {name}: no such file, and none of the shipped ones: {', '.join(shipped_profiles())}"
        )
    content, root = read_mapping(path, "profile", "cores, threads and what else differs from this machine")
    try:
        return Hardware.model_validate({"name": path.stem, **content})
    except (ValidationError, RecursionError) as error:
        raise InputError(explain(path, root, error)) from None


def resolve_profile(given: Any, folder: Path) -> Any:
    """A recipe's ``hardware`` with the profile that it names filled in; its own fields come first.

    Args:
        given: a profile's name or path, or a mapping, which may hold one under ``profile``.
        folder: the recipe's.
    """
    if isinstance(given, str):
        given = {"profile": given}
    if not isinstance(given, dict) or "profile" not in given:
        return given
    if not isinstance(given["profile"], str):
        raise InputError(f"hardware.profile must be a shipped profile's name or a path, got {given['profile']!r}")
    own = {key: value for key, value in given.items() if key != "profile"}
    return {**load_profile(given["profile"], folder).model_dump(mode="json", exclude_unset=True), **own}
