"""Recipes: what is right loads, what is wrong is one line with file, line, field and rule."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mlites.errors import InputError
from mlites.recipe import Recipe, Teacher, load_recipe

GOOD = """\
name: mine
data: {source: npz, path: mine.npz}
teacher:
  architecture: {family: resnet, depth: 8}
candidates:
  - name: int8
    passes:
      - {pass: quantize}
  - name: small
    passes:
      - {pass: distill, student: {family: mlp}}
budget: {accuracy_drop_points: 2}
"""


def _write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _error(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_twelve_line_recipe_is_enough(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, GOOD))
    assert recipe.model_name == "mine"
    assert [step.label for one in recipe.candidates for step in one.passes] == ["quantize static", "distill to mlp 64"]


def test_a_recipe_survives_the_round_trip_through_json(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, GOOD))
    assert Recipe.model_validate(json.loads(recipe.model_dump_json(by_alias=True))) == recipe


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("name: mine", "name: My Model", 1, ["name", "lower-case letters", "'My Model'"]),
        ("depth: 8", "depth: 9", 4, ["teacher.architecture: depth must be 6n + 2", "got 9"]),
        ("depth: 8", "deep: 8", 4, ["teacher.architecture.deep", "unknown field"]),
        ("family: resnet", "family: transformer", 4, ["teacher.architecture", "'mlp', 'lenet'", "'transformer'"]),
        ("source: npz", "source: excel", 2, ["data.source", "'digits'", "'excel'"]),
        (", path: mine.npz", "", 2, ["data: source npz needs a path"]),
        ("source: npz", "source: digits", 2, ["digits ships with scikit-learn and takes no path"]),
        ("pass: quantize", "pass: quantise", 8, ["candidates.0.passes.0", "'quantize'", "'quantise'"]),
        ("{pass: quantize}", "{}", 8, ["candidates.0.passes.0", "pass is missing"]),
        ("name: small", "name: int8", 5, ["'int8' repeats 'int8'"]),
        ("name: small", "name: teacher", 5, ["taken by the baseline"]),
        (
            "accuracy_drop_points: 2",
            "accuracy_drop_points: -1",
            12,
            ["budget.accuracy_drop_points", "greater than or equal to 0"],
        ),
        ("accuracy_drop_points: 2", "accuracy_drop_points: .nan", 12, ["budget.accuracy_drop_points", "finite"]),
        ("accuracy_drop_points: 2", "accuracy: 2", 12, ["budget.accuracy", "unknown field"]),
        (
            "- {pass: quantize}",
            "- {pass: quantize}\n      - {pass: prune}",
            6,
            ["prune cannot follow quantize", "put quantize last"],
        ),
        ("candidates:", "candidates: []\nother:", 5, ["candidates", "at least 1"]),
        (
            "architecture: {family: resnet, depth: 8}",
            "weights: a.safetensors",
            3,
            ["exactly one of architecture, model or factory"],
        ),
        ("architecture: {family: resnet, depth: 8}", "factory: os.system", 4, ["teacher.factory", "pattern"]),
        ("{source: npz, path: mine.npz}", "{source: csv, path: a.csv}", 1, ["resnet needs images"]),
        ("budget:", "name: again\nbudget:", 12, ["'name' is given twice"]),
        ("name: mine", "name: [", 3, ["not valid YAML"]),
        ("name: mine", "seed: 1", 1, ["name: required field is missing"]),
    ],
)
def test_a_wrong_recipe_is_one_line_with_file_line_field_and_rule(
    tmp_path: Path, old: str, new: str, line: int, parts: list[str]
) -> None:
    assert old in GOOD
    path = _write(tmp_path, GOOD.replace(old, new, 1))
    message = _error(path)
    assert message.startswith(f"{path}:{line}:"), message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"a: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        (b"name: &a [*a]\n", "name"),
        (b"#" * (1 << 20) + b"\n\n", "larger than 1 MiB"),
        (b"? [a]\n: b\n", "not valid YAML"),
    ],
)
def test_what_is_no_recipe_at_all_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    assert part in _error(_write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.yaml: cannot read the recipe: No such file" in _error(tmp_path / "none.yaml")


def test_overrides_reach_nested_fields_and_are_checked_like_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    recipe = load_recipe(path, ["seed=7", "teacher.training.epochs=3", "candidates.1.passes.0.student.hidden=[8, 4]"])
    assert recipe.seed == 7
    assert recipe.teacher.training is not None and recipe.teacher.training.epochs == 3
    assert recipe.candidates[1].passes[0].student.hidden == (8, 4)  # type: ignore[union-attr]
    assert "expected key=value" in _error(path, "seed")
    assert "no 'x' in the recipe" in _error(path, "name.x=1")
    assert "seed" in _error(path, "seed=many")
    assert "not valid YAML" in _error(path, "seed=[")


def test_a_factorys_whole_numbers_come_back_from_kfps_floats() -> None:
    from mlites.recipe import Teacher

    teacher = Teacher(
        factory="pkg.nets:build", weights="w.safetensors", options={"width": 8.0, "rate": 0.5, "on": True}
    )
    assert teacher.options == {"width": 8, "rate": 0.5, "on": True}
    assert isinstance(teacher.options["width"], int)


def test_the_checked_in_schema_is_the_models() -> None:
    path = Path(__file__).parents[2] / "mlites" / "recipe.schema.json"
    assert json.loads(path.read_text()) == Recipe.model_json_schema(by_alias=True)


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "toolbox"])
def test_the_shipped_recipes_have_six_candidates_that_share_prefixes(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "pipelines" / "recipes" / f"{name}.yaml")
    assert len(recipe.candidates) >= 6
    firsts = [one.passes[0] for one in recipe.candidates]
    assert len({str(step) for step in firsts}) < len(firsts)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": "m", "workers": 2}, "workers train an architecture or a transfer; a given model is taken as it is"),
        (
            {"architecture": {"family": "mlp"}, "training": {"batch_size": 9}, "workers": 5},
            "workers must be 1 to 4, as each takes 2 rows at least of a batch of 9, got 5",
        ),
    ],
)
def test_workers_without_work_are_refused(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Teacher.model_validate(teacher)
    assert Teacher.model_validate({"model": "m", "transfer": {}, "workers": 2}).workers == 2
