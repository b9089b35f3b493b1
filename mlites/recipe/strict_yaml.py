"""Strict YAML files that a user writes, and one line for each mistake in them."""

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from mlites.errors import InputError
from mlites.recipe.architecture import Architecture
from mlites.recipe.options import NAME
from mlites.recipe.passes import Pass

LARGEST_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, which PyYAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str, contents: str) -> tuple[dict[str, Any], yaml.Node | None]:
    """Read a YAML file that holds one mapping.

    Args:
        path: the file.
        what: it is, for messages: recipe, profile.
        contents: what the mapping should hold, for messages.

    Returns:
        The mapping, and its syntax tree, in which `explain` finds lines.

    Raises:
        InputError: with file, line and reason.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: larger than 1 MiB; a {what} names data, it does not hold it")
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_StrictLoader)
        content = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot read the {what}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; a {what} is a YAML file") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"{path}{_yaml_place(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: the {what} must be a mapping with {contents}")
    return content, root


def _yaml_place(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return f":{mark.line + 1}: not valid YAML: {problem}" if mark else f": not valid YAML: {problem}"


def explain(path: Path, root: yaml.Node | None, error: ValidationError | RecursionError) -> str:
    """One line for the first fault, with how many more there are."""
    if isinstance(error, RecursionError):
        return f"{path}: it refers to itself; remove the YAML alias that makes the loop"
    faults = error.errors(include_url=False)
    fault = faults[0]
    place, line = _locate(root, fault["loc"])
    field = ".".join(str(part) for part in place) or "all of it"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{path}:{line}: {field}: {_rule(fault)}{more}"


def _rule(fault: Any) -> str:
    given, kind = fault["input"], fault["type"]
    if kind == "extra_forbidden":
        return "unknown field; remove it or check its spelling"
    if kind == "missing":
        return "required field is missing"
    if kind == "value_error":
        return str(fault["ctx"]["error"])
    if kind == "union_tag_not_found":
        field = fault["ctx"]["discriminator"].strip("'").split("'")[0].replace("technique", "pass")
        return f"required field {field} is missing"
    if kind == "union_tag_invalid":
        return f"must be one of {fault['ctx']['expected_tags']}, got {fault['ctx']['tag']!r}"
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else type(given).__name__
    rule = fault["msg"][0].lower() + fault["msg"][1:]
    if kind == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        rule = "must be lower-case letters, digits and inner hyphens, at most 63"
    return f"{rule}, got {shown[:80]}"


def _locate(root: yaml.Node | None, loc: tuple[int | str, ...]) -> tuple[list[int | str], int]:
    """The path in the user's words (union tags left out) and the nearest line of the file."""
    place: list[int | str] = []
    node, line = root, (root.start_mark.line + 1 if root else 1)
    for index, part in enumerate(loc):
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None and _is_union_tag(part):
            continue
        if child is None:
            place.extend(loc[index:])
            break
        place.append(part)
        node = child
    return place, line


def _is_union_tag(part: int | str) -> bool:
    """Whether a part of an error's place is a family or a pass, which the user's file does not nest by."""
    return part in UNION_TAGS


def _tags(union: Any, field: str) -> set[str]:
    kinds = get_args(get_args(union)[0])
    return {tag for kind in kinds for tag in get_args(kind.model_fields[field].annotation)}


UNION_TAGS = _tags(Architecture, "family") | _tags(Pass, "technique")
