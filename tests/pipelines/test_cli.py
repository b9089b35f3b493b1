"""The command line: wrong input is one line and exit code 2, and what needs no server needs none."""

import json
import sys
from pathlib import Path

import pytest

from mlites.recipe import Recipe
from pipelines.cli import main

GOOD = """\
name: mine
data: {source: npz, path: mine.npz}
teacher: {architecture: {family: mlp}}
candidates: [{name: int8, passes: [{pass: quantize}]}]
"""


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mlites", *arguments])
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


def test_check_tells_what_is_right_and_runs_nothing(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, "check", "recipe.yaml") == 0
    assert capsys.readouterr().out == "recipe.yaml: right. 1 candidates in 2 compression steps\n"
    assert [path.name for path in recipe.parent.iterdir()] == ["recipe.yaml"]


def test_a_shipped_recipe_goes_by_its_name(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "digits").mkdir()  # a folder of that name is no recipe
    assert _call(monkeypatch, "check", "digits") == 0
    assert "7 candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["check", "none.yaml"], "none.yaml: cannot read the recipe: No such file"),
        (["check", "recipe.yaml", "--set", "seed=-1"], "recipe.yaml:1: seed: "),
        (["run", "recipe.yaml"], "mine.npz"),
        (["run", "recipe.yaml", "--set", "data.path=s3://BAD_BUCKET/x"], "s3://"),
        (["compile", "recipe.yaml", "-o", "out.json"], "--output out.json: KFP takes .yaml"),
        (
            ["run", "recipe.yaml", "--set", "data={source: digits}", "--set", "teacher={model: none}"],
            "none does not exist",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_stack: dict[str, str],
    arguments: list[str],
    part: str,
) -> None:
    assert _call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ") and part in line
    assert out == "" and not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run"], ["run", "recipe.yaml", "--sett", "a=1"]])
def test_wrong_usage_is_exit_code_2(recipe: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    assert _call(monkeypatch, *arguments) == 2


def test_compiling_twice_gives_identical_bytes_and_a_note_on_local_data(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.yaml", "two.yaml"):
        assert _call(monkeypatch, "compile", "recipe.yaml", "-o", name) == 0
    assert (recipe.parent / "one.yaml").read_bytes() == (recipe.parent / "two.yaml").read_bytes()
    assert "data_path is mine.npz, which a cluster cannot see" in capsys.readouterr().err


def test_the_schema_is_printed_for_editors(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out) == Recipe.model_json_schema(by_alias=True)
