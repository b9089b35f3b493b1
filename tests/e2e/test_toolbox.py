"""Passes of every kind in one pipeline; a pass that fails is told with what the steps before it found."""

import json
from typing import Any

import pytest

from mlites.models.card import read_card
from tests.e2e.conftest import Workplace

BRIEF: dict[str, Any] = {"epochs": 2, "batch_size": 32, "learning_rate": 0.05}
RECIPE: dict[str, Any] = {
    "name": "kinds",
    "data": {"source": "digits", "limit": 600},
    "teacher": {
        "architecture": {"family": "convnet", "channels": [16, 32], "strides": [2, 1], "head": "full"},
        "training": {**BRIEF, "epochs": 8},
    },
    "candidates": [
        {
            "name": "factorized",
            "passes": [
                {"pass": "factorize", "budget": 0.7, "training": BRIEF},
                {"pass": "distill", "training": BRIEF},
                {"pass": "quantize", "max_drop_points": 2},
            ],
        },
        {
            "name": "shared",
            "passes": [
                {
                    "pass": "prune",
                    "method": "magnitude",
                    "amount": 0.6,
                    "retrain": "learning-rate-rewinding",
                    "rewind_epoch": 4,
                },
                {"pass": "share", "bits": 4, "conv_bits": 4, "training": BRIEF},
            ],
        },
        {"name": "trained-int8", "passes": [{"pass": "qat", "training": BRIEF}]},
    ],
    "budget": {"accuracy_drop_points": 100},
    "hardware": {"seconds": 0.3, "longest_seconds": 0.3},
}


@pytest.fixture(scope="module")
def summary(workplace: Workplace) -> dict[str, Any]:
    (workplace.folder / "kinds.yaml").write_text(json.dumps(RECIPE))
    result = workplace.mlites("run", "kinds.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, Any] = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    return found


def test_every_kind_of_pass_is_a_step_of_its_own(summary: dict[str, Any], workplace: Workplace) -> None:
    kinds = {card.parent.parent.name.rpartition("-")[0] for card in _cards(workplace)}
    assert {"factorize", "distill", "quantize", "prune", "share", "qat", "export"} <= kinds
    names = {one["name"] for one in summary["candidates"]}
    assert names == {"factorized", "shared", "trained-int8"}


def test_the_provenance_of_a_candidate_is_its_chain(summary: dict[str, Any], workplace: Workplace) -> None:
    chains = {tuple(entry["step"] for entry in read_card(card.parent).provenance) for card in _cards(workplace)}
    assert ("train", "factorize", "distill", "export", "quantize") in chains
    assert ("train", "prune", "share", "export") in chains and ("train", "qat") in chains
    origin = next(card for card in _cards(workplace) if card.parent.parent.name.startswith("prune-"))
    epochs = [entry["epoch"] for entry in read_card(origin.parent).provenance[-1]["history"]]
    assert epochs == [5, 6, 7, 8]  # the teacher's schedule from epoch 4 on


def test_shared_and_sparse_weights_are_small_to_download(summary: dict[str, Any]) -> None:
    shared = next(one for one in summary["candidates"] if one["name"] == "shared")
    assert shared["download_bytes"] < summary["baseline"]["download_bytes"] / 3


def test_a_candidate_that_fails_is_told_and_the_others_are_deployed(workplace: Workplace) -> None:
    failing = {
        "name": "failing",
        "passes": [{"pass": "prune", "amount": 0.1, "round_to": 64, "training": BRIEF}, {"pass": "quantize"}],
    }
    recipe = RECIPE | {"candidates": [*RECIPE["candidates"], failing]}
    (workplace.folder / "failing.yaml").write_text(json.dumps(recipe))
    result = workplace.mlites("run", "failing.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("failed: "))
    assert line.startswith("failed:   failing at prune structured 10%: nothing to prune: amount 0.1 of layers")
    assert "Traceback" not in result.stderr
    assert "prune structured 10%  failed: nothing to prune" in result.stdout
    assert "prune structured 10% > quantize static  skipped" in result.stdout
    found = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    assert found["status"] == "deployed" and found["selected"] != "failing" and found["error"] is None
    one = next(one for one in found["candidates"] if one["name"] == "failing")
    assert one["failed"]["step"] == "prune structured 10%" and one["accuracy"] is None
    again = workplace.mlites("run", "failing.yaml")
    assert "prune structured 10%  failed: nothing to prune" in again.stdout  # tried again, never from the cache


def test_a_run_whose_candidates_all_fail_ends_with_their_error(workplace: Workplace) -> None:
    failing = {"name": "failing", "passes": [{"pass": "prune", "amount": 0.1, "round_to": 64, "training": BRIEF}]}
    (workplace.folder / "failing.yaml").write_text(json.dumps(RECIPE | {"candidates": [failing]}))
    result = workplace.mlites("run", "failing.yaml")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "nothing to prune: amount 0.1 of layers this narrow" in result.stderr and "Traceback" not in result.stderr
    found = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    assert found["status"] == "failed" and found["failed_step"] == "select"


def _cards(workplace: Workplace) -> list[Any]:
    return list((workplace.folder / ".mlites" / "artifacts").glob("*kinds*/*/model/model.json"))
