"""Dataset folders: what is written is what is read, and nothing altered gets through."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlites.data.dataset import FORMAT, Dataset, Preprocessing, write_dataset
from mlites.errors import InputError
from mlites.files import canonical_json, digest_file, digest_json

Refusal = Callable[..., str]


def _write(folder: Path) -> Dataset:
    rng = np.random.default_rng(7)
    rows = {"train": 12, "validation": 4, "test": 5}
    splits = {
        name: (rng.integers(0, 256, (n, 3, 4, 5), dtype=np.uint8), np.arange(n, dtype=np.int64) % 2)
        for name, n in rows.items()
    }
    (folder / "profile.json").write_text("{}")
    return write_dataset(
        folder,
        task="image-classification",
        source="npz",
        classes=("cat", "dog"),
        preprocessing=Preprocessing(1 / 255, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)),
        splits=splits,
        extra=("profile.json",),
    )


def _rewrite(folder: Path, **changes: Any) -> None:
    """Change the document and give it a digest that fits, as somebody who knows the format could."""
    document = {**json.loads((folder / "data.json").read_bytes()), **changes}
    document.pop("digest")
    (folder / "data.json").write_bytes(canonical_json({**document, "digest": digest_json(document)}))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = _write(tmp_path)
    read = Dataset.load(tmp_path)
    assert read == written
    assert read.input_shape == (3, 4, 5)
    assert read.rows == {"train": 12, "validation": 4, "test": 5}
    inputs, labels = read.split("train")
    stored = load_file(tmp_path / "train.safetensors")
    assert inputs.dtype == np.uint8 and np.array_equal(inputs, stored["inputs"])
    assert labels.dtype == np.int64 and np.array_equal(labels, stored["labels"])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _write(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_arrays_are_normalised_per_channel(tmp_path: Path) -> None:
    dataset = _write(tmp_path)
    raw, labels = dataset.split("test")
    arrays, same_labels = dataset.arrays("test")
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 1.0])
    expected = (raw.transpose(0, 2, 3, 1) / 255.0 - mean) / std
    assert arrays.dtype == np.float32 and arrays.flags.c_contiguous
    np.testing.assert_allclose(arrays, expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert np.array_equal(labels, same_labels)


def test_normalising_leaves_the_input_alone_and_checks_its_shape() -> None:
    preprocessing = Preprocessing(1.0, (1.0, 2.0), (2.0, 4.0))
    table = np.array([[3.0, 10.0]], np.float32)
    assert preprocessing.apply(table).tolist() == [[1.0, 2.0]]
    assert table.tolist() == [[3.0, 10.0]]
    with pytest.raises(ValueError, match="2 channels or features"):
        preprocessing.apply(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({"scale": 1.0, "mean": [0.0], "std": [0.0]}, "above 0"),
        ({"scale": 1.0, "mean": [0.0, 1.0], "std": [1.0]}, "same length"),
        ({"scale": 1.0, "mean": [], "std": []}, "same length"),
        ({"scale": float("inf"), "mean": [0.0], "std": [1.0]}, "finite"),
        ({"scale": 1.0, "mean": ["0"], "std": [1.0]}, "numbers"),
        ({"scale": True, "mean": [0.0], "std": [1.0]}, "numbers"),
        ({"scale": 1.0, "mean": 0.0, "std": [1.0]}, "lists"),
        ({"scale": 1.0, "mean": [0.0]}, "mapping"),
        ([1.0], "mapping"),
    ],
)
def test_preprocessing_refuses_what_it_would_not_write(value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Preprocessing.from_json(value)


def test_preprocessing_survives_json() -> None:
    one = Preprocessing(1 / 255, (0.1, 1 / 3), (0.5, 2 / 3))
    assert Preprocessing.from_json(json.loads(canonical_json(one.to_json()))) == one


@pytest.mark.parametrize("name", ["train.safetensors", "validation.safetensors", "test.safetensors", "profile.json"])
def test_an_altered_or_missing_file_is_refused(tmp_path: Path, name: str, refusal: Refusal) -> None:
    _write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    message = refusal(Dataset.load, tmp_path)
    assert name in message and "altered" in message
    (tmp_path / name).unlink()
    assert "missing" in refusal(Dataset.load, tmp_path)


def test_an_altered_document_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    _write(tmp_path)
    text = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(text.replace('"cat"', '"cow"'))
    assert "altered" in refusal(Dataset.load, tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"format": FORMAT}))
    assert "altered" in refusal(Dataset.load, tmp_path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a dataset's description (mlites-data/1)"),
        ('{"format":"mlites-data/2"}', "expected a dataset's description (mlites-data/1)"),
    ],
)
def test_something_else_than_a_dataset_is_refused(tmp_path: Path, text: str, rule: str, refusal: Refusal) -> None:
    (tmp_path / "data.json").write_text(text)
    assert rule in refusal(Dataset.load, tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    assert "No such file" in refusal(Dataset.load, tmp_path / "nowhere")


def test_an_endless_document_is_refused_by_its_size(tmp_path: Path, refusal: Refusal) -> None:
    with (tmp_path / "data.json").open("wb") as file:
        file.truncate((64 << 20) + 1)  # sparse
    assert "larger than 64 MiB" in refusal(Dataset.load, tmp_path)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"task": "regression"}, "does not go with"),
        ({"task": "tabular-classification"}, "does not go with"),
        ({"input_shape": [3, 4, 0]}, "positive"),
        ({"input_shape": [1, 4, 5]}, "1 means, got 3"),
        ({"classes": ["cat"]}, "at least 2"),
        ({"classes": ["cat", "cat"]}, "different names"),
        ({"classes": ["cat", 1]}, "different names"),
        ({"rows": {"train": 12}}, "rows must be"),
        ({"rows": {"train": 12, "validation": 0, "test": 5}}, "rows must be"),
        ({"files": {}}, "files must name"),
        ({"preprocessing": {}}, "mapping with scale"),
        ({"classes": None}, "not a valid"),
    ],
)
def test_a_document_that_breaks_a_rule_is_refused_though_its_digest_fits(
    tmp_path: Path, changes: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    _write(tmp_path)
    _rewrite(tmp_path, **changes)
    assert rule in refusal(Dataset.load, tmp_path)


def test_a_document_cannot_point_out_of_its_folder(tmp_path: Path, refusal: Refusal) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    _write(folder)
    shutil.copy(folder / "profile.json", tmp_path / "outside.json")
    files = json.loads((folder / "data.json").read_bytes())["files"]
    _rewrite(folder, files={**files, "../outside.json": digest_file(tmp_path / "outside.json")})
    assert "without folders" in refusal(Dataset.load, folder)


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"inputs": np.zeros((12, 3, 4, 5), np.float32)}, "inputs must be uint8"),
        ({"inputs": np.zeros((12, 3, 4, 4), np.uint8)}, "inputs must be uint8"),
        ({"labels": np.zeros(11, np.int64)}, "labels must be int64"),
        ({"labels": np.zeros(12, np.int32)}, "labels must be int64"),
        ({"labels": np.full(12, 2, np.int64)}, "0 to 1"),
        ({"labels": np.full(12, -1, np.int64)}, "0 to 1"),
    ],
)
def test_a_split_that_does_not_fit_its_document_is_refused(
    tmp_path: Path, tensors: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    dataset = _write(tmp_path)
    save_file({**load_file(tmp_path / "train.safetensors"), **tensors}, tmp_path / "train.safetensors")
    assert rule in refusal(dataset.split, "train")


def test_a_broken_split_file_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    dataset = _write(tmp_path)
    (tmp_path / "train.safetensors").write_bytes(b"\xff" * 64)
    assert "not readable as safetensors" in refusal(dataset.split, "train")


def test_an_unknown_split_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train, validation, test"):
        _write(tmp_path).split("holdout")


def test_a_model_with_other_numbers_gets_its_rows_normalised_with_them(tmp_path: Path) -> None:
    inputs, labels = np.arange(24, dtype=np.float32).reshape(6, 4), np.array([0, 1, 0, 1, 0, 1])
    dataset = write_dataset(
        tmp_path,
        task="tabular-classification",
        source="npz",
        classes=("a", "b"),
        preprocessing=Preprocessing(1.0, (0.0,) * 4, (1.0,) * 4),
        splits={name: (inputs, labels) for name in ("train", "validation", "test")},
    )
    theirs = {"scale": 2.0, "mean": [1.0, 2.0, 3.0, 4.0], "std": [4.0] * 4}
    rows, _ = dataset.normalised_for(theirs).arrays("test")
    np.testing.assert_allclose(rows, (inputs * 2 - np.array([1, 2, 3, 4])) / 4, rtol=1e-6)
    with pytest.raises(InputError, match=r"normalises 2 channels or features, the data has 4"):
        dataset.normalised_for({"scale": 1.0, "mean": [0.0, 0.0], "std": [1.0, 1.0]})
    with pytest.raises(InputError, match="cannot be read"):
        dataset.normalised_for({"scale": 1.0})
