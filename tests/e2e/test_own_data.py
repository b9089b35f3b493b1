"""A user's own data with a short recipe; wrong data is one line and exit code 2; the gate says no with exit code 3."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlites.storage import Store
from tests.e2e.conftest import Workplace

RECIPE = """\
name: {name}
data: {{source: {source}, path: {path}}}
teacher:
  architecture: {{family: {family}}}
  training: {{epochs: 6, learning_rate: 0.1}}
candidates:
  - name: int8
    passes: [{{pass: quantize}}]
  - name: small
    passes: [{{pass: distill, student: {{family: mlp, hidden: [32]}}, training: {{epochs: 20}}}}]
budget: {{accuracy_drop_points: 20}}
hardware: {{seconds: 0.3, longest_seconds: 0.3}}
"""


def _write(
    workplace: Workplace, name: str, source: str, path: Path | str, family: str = "resnet, depth: 8, width: 8"
) -> str:
    recipe = RECIPE.format(name=name, source=source, path=path, family=family)
    assert len(recipe.splitlines()) <= 12
    (workplace.folder / f"{name}.yaml").write_text(recipe)
    return f"{name}.yaml"


def _digits() -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) * 15).astype(np.uint8), labels


def test_a_12_line_recipe_serves_a_model_of_the_users_npz(workplace: Workplace, tmp_path: Path) -> None:
    images, labels = _digits()
    np.savez(tmp_path / "mine.npz", x=images, y=labels)
    result = workplace.mlites("run", _write(workplace, "own-npz", "npz", tmp_path / "mine.npz"))
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    assert summary["recipe"] == "own-npz" and summary["deployment"]["model"] == "own-npz"
    assert summary["baseline"]["accuracy"] > 0.85


def test_a_12_line_recipe_serves_a_model_of_the_users_pictures(workplace: Workplace, tmp_path: Path) -> None:
    images, labels = _digits()
    for index, (image, label) in enumerate(zip(images[:600], labels[:600], strict=True)):
        folder = tmp_path / "pictures" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    result = workplace.mlites("run", _write(workplace, "own-pictures", "imagefolder", tmp_path / "pictures"))
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    assert summary["data"]["classes"] == [f"class {digit}" for digit in range(10)]


def test_a_budget_that_nothing_meets_is_rejected_with_exit_code_3_data_from_s3(
    workplace: Workplace, tmp_path: Path
) -> None:
    rows, labels = _digits()
    np.savez(tmp_path / "table.npz", x=rows.reshape(-1, 64).astype(np.float32), y=labels)
    Store.open("s3://uploads", workplace.servers()).put_file("tables/table.npz", tmp_path / "table.npz")
    recipe = _write(workplace, "rejected", "npz", "s3://uploads/tables/table.npz", "mlp, hidden: [16]")
    result = workplace.mlites("run", recipe, "--set", "budget.speedup=1000")
    assert result.returncode == 3, result.stdout + result.stderr
    summary = json.loads((workplace.folder / "runs" / "latest" / "summary.json").read_text())
    assert summary["status"] == "rejected" and summary["selected"] and "1000" in str(summary["candidates"])
    assert summary["deployment"]["version"] is None


def _truncated_idx(folder: Path) -> tuple[str, Path]:
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 100, 8, 8) + b"\0" * 100)
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 100) + b"\0" * 100)
    return "idx", folder


def _objects(folder: Path) -> tuple[str, Path]:
    np.savez(folder / "a.npz", x=np.array([{}] * 40, dtype=object), y=np.arange(40) % 2)
    return "npz", folder / "a.npz"


def _nan(folder: Path) -> tuple[str, Path]:
    rows = np.ones((40, 8, 8), np.float32)
    rows[3] = np.nan
    np.savez(folder / "a.npz", x=rows, y=np.arange(40) % 2)
    return "npz", folder / "a.npz"


def _one_class(folder: Path) -> tuple[str, Path]:
    np.savez(folder / "a.npz", x=np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8), y=np.zeros(40, int))
    return "npz", folder / "a.npz"


def _no_table(folder: Path) -> tuple[str, Path]:
    (folder / "a.csv").write_text("not,a\ntable\n1,2,3\n")
    return "csv", folder / "a.csv"


def _missing(folder: Path) -> tuple[str, Path]:
    return "npz", folder / "none.npz"


def _empty_folder(folder: Path) -> tuple[str, Path]:
    return "imagefolder", folder


@pytest.mark.parametrize("make", [_truncated_idx, _objects, _nan, _one_class, _no_table, _missing, _empty_folder])
def test_wrong_data_is_one_line_and_exit_code_2(workplace: Workplace, tmp_path: Path, make: Any) -> None:
    source, path = make(tmp_path)
    result = workplace.mlites("run", _write(workplace, "wrong", source, path, "mlp"))
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and tmp_path.name in line
    assert "Traceback" not in result.stdout
