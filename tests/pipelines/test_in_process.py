"""`mlites compress`: chains on one model without servers; finished steps are not run again."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlites.compression.steps import train_teacher
from mlites.data.dataset import Dataset
from mlites.data.prepare import prepare
from mlites.errors import InputError
from mlites.models.card import read_card
from mlites.recipe import Data, Recipe, Teacher
from pipelines.cli import cli
from pipelines.in_process import compress

BRIEF = {"epochs": 2, "batch_size": 32, "precision": "fp32"}
DATA = {"source": "digits", "limit": 400}
TEACHER = {"architecture": {"family": "mlp", "hidden": [32, 32]}, "training": {**BRIEF, "epochs": 10}}
PRUNE = {"pass": "prune", "amount": 0.5, "training": BRIEF}


def recipe(*candidates: list[dict[str, object]]) -> Recipe:
    named = [{"name": f"c{index}", "passes": passes} for index, passes in enumerate(candidates)]
    return Recipe.model_validate(
        {
            "name": "small",
            "data": DATA,
            "teacher": TEACHER,
            "candidates": named,
            "hardware": {"seconds": 0.2, "longest_seconds": 0.2},
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("model")
    prepare(Data.model_validate(DATA), None, 0, None, work / "data", work / "quality.html", None)
    train_teacher(Teacher.model_validate(TEACHER), Dataset.load(work / "data"), 0, work / "model")
    return work / "model"


def test_every_candidate_becomes_a_model_folder_and_the_best_is_named(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    chains = recipe([PRUNE], [PRUNE, {"pass": "distill", "training": BRIEF}, {"pass": "quantize"}])
    selection = compress(model, chains, tmp_path, said.append)
    assert [one["candidate"] for one in selection["candidates"]] == ["c0", "c1"]
    assert selection["selected"] in ("c0", "c1") and json.loads((tmp_path / "selection.json").read_text()) == selection
    card = read_card(tmp_path / "c1")
    assert [entry["step"] for entry in card.provenance] == ["train", "prune", "distill", "export", "quantize"]
    assert next(line for line in said if line.startswith("prune")) == "prune structured 50%"
    assert selection["candidates"][0]["size_ratio"] > 1.5


def test_finished_steps_are_not_run_again_and_new_candidates_use_them(model: Path, tmp_path: Path) -> None:
    first: list[str] = []
    compress(model, recipe([PRUNE]), tmp_path, first.append)
    again: list[str] = []
    compress(model, recipe([PRUNE], [PRUNE, {"pass": "quantize"}]), tmp_path, again.append)
    assert first == ["teacher > ONNX", "prune structured 50%", "prune structured 50% > ONNX", "measure c0"]
    assert again == ["prune structured 50% > quantize static", "measure c0", "measure c1"]


def test_a_foreign_onnx_file_can_be_quantized_and_nothing_else(model: Path, tmp_path: Path) -> None:
    compress(model, recipe([PRUNE]), tmp_path / "first", lambda _: None)
    foreign = tmp_path / "first" / "c0" / "model.onnx"
    selection = compress(foreign, recipe([{"pass": "quantize"}]), tmp_path / "second", lambda _: None)
    assert read_card(tmp_path / "second" / "c0").architecture == {"family": "onnx"}
    assert selection["candidates"][0]["accuracy_drop_points"] < 5
    with pytest.raises(InputError, match="holds ONNX, which no longer trains; prune needs a PyTorch model folder"):
        compress(foreign, recipe([PRUNE]), tmp_path / "third", lambda _: None)


def test_the_command_prints_each_candidate_and_the_reason(model: Path, tmp_path: Path) -> None:
    content = recipe([PRUNE]).model_dump(mode="json", by_alias=True, exclude_none=True)
    (tmp_path / "small.yaml").write_text(json.dumps(content))
    arguments = ["compress", str(model), "--recipe", str(tmp_path / "small.yaml"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert (
        "c0" in result.stdout
        and "teacher's speed" in result.stdout
        and f"models:   {tmp_path / 'out'}" in result.stdout
    )


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder; give an mlites model folder"):
        compress(tmp_path / "absent", recipe([PRUNE]), tmp_path / "out", lambda _: None)


def test_pack_and_unpack_restore_the_file_bit_for_bit(model: Path, tmp_path: Path) -> None:
    compress(model, recipe([{"pass": "quantize"}]), tmp_path, lambda _: None)
    original = tmp_path / "c0" / "model.onnx"
    run = CliRunner().invoke
    packed = run(cli, ["pack", str(original)], catch_exceptions=False)
    assert packed.exit_code == 0 and "times smaller" in packed.stdout
    beside = original.with_name("model.onnx.packed")
    assert beside.stat().st_size < original.stat().st_size
    assert run(cli, ["unpack", str(beside), "-o", str(tmp_path / "again.onnx")]).exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == original.read_bytes()
    beside.write_bytes(os.urandom(100))
    with pytest.raises(InputError, match=f"{beside}: "):
        run(cli, ["unpack", str(beside), "-o", str(tmp_path / "bad.onnx")], catch_exceptions=False)
    assert not (tmp_path / "bad.onnx").exists()


REFUSED = {"pass": "prune", "amount": 0.1, "round_to": 64, "training": BRIEF}


def test_a_candidate_that_fails_is_listed_and_the_others_are_judged(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    chains = recipe([PRUNE], [REFUSED, {"pass": "quantize"}])
    selection = compress(model, chains, tmp_path, said.append)
    judged, failed = selection["candidates"]
    assert selection["selected"] == "c0" and judged["within_budget"] is not None
    assert failed["failed"]["step"] == "prune structured 10%" and "nothing to prune" in failed["failed"]["error"]
    assert sum(line.startswith("failed prune structured 10%: nothing to prune") for line in said) == 1
    assert "measure c1" not in said
    assert (tmp_path / "c0" / "model.onnx").exists() and not (tmp_path / "c1").exists()
    again: list[str] = []
    compress(model, chains, tmp_path, again.append)
    assert "prune structured 10%" in again and "prune structured 50%" not in again  # what failed is tried again


def test_when_every_candidate_fails_that_is_the_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to prune"):
        compress(model, recipe([REFUSED]), tmp_path, lambda _: None)
