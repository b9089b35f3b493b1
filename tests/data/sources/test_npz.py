"""NumPy archives: what NumPy saves is read, and nothing in them can run code or take the memory."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlites.data import raw as limits
from mlites.data.sources.npz import read
from mlites.recipe import Data

Refusal = Callable[..., str]
OPTIONS = Data(source="npz", path="anywhere")
LABELS = np.arange(8) % 2


def _save(folder: Path, **arrays: Any) -> Path:
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


def _zip(folder: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return folder / "data.npz"


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _header(text: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text.encode()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 5, 6), None),
        ((8, 5, 6, 1), (0, 3, 1, 2)),
        ((8, 5, 6, 3), (0, 3, 1, 2)),
        ((8, 4, 5, 6), (0, 1, 2, 3)),
        ((8, 3, 5, 6), (0, 1, 2, 3)),
    ],
)
def test_images_come_out_channels_first(tmp_path: Path, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    raw = read(_save(tmp_path, x=x, y=LABELS), OPTIONS)
    assert np.array_equal(raw.inputs, x.transpose(axes) if axes else x[:, None])
    assert raw.inputs.flags.c_contiguous and raw.scale == 1 / 255 and raw.columns == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int64, ">i2", bool])
def test_a_table_of_any_number_type_becomes_float32(tmp_path: Path, dtype: Any) -> None:
    x = (np.arange(16).reshape(8, 2) % 5).astype(dtype)
    raw = read(_save(tmp_path, x=x, y=LABELS), OPTIONS)
    assert raw.inputs.dtype == np.float32 and raw.inputs.tolist() == x.astype(float).tolist()
    assert raw.columns == ("x0", "x1") and raw.scale == 1.0


def test_fortran_order_is_read_right(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(24.0).reshape(8, 3))
    assert read(_save(tmp_path, x=x, y=LABELS), OPTIONS).inputs.tolist() == x.tolist()


def test_float_images_become_levels(tmp_path: Path) -> None:
    levels = np.arange(8 * 25).reshape(8, 5, 5).astype(np.uint8)
    for x in (levels / 255, (levels / 255).astype(np.float32), levels.astype(np.float64), levels.astype(np.int64)):
        assert np.array_equal(read(_save(tmp_path, x=x, y=LABELS), OPTIONS).inputs[:, 0], levels)


@pytest.mark.parametrize(
    ("y", "classes", "first"),
    [
        (np.array([5, -1, 10, 5, -1, 10, 5, -1]), ("-1", "5", "10"), 1),
        (np.array(["dog", "cat"] * 4), ("cat", "dog"), 1),
        (np.array([b"dog", b"cat"] * 4), ("cat", "dog"), 1),
        (np.array([True, False] * 4), ("false", "true"), 1),
        (LABELS[:, None].astype(np.uint8), ("0", "1"), 0),
    ],
)
def test_labels_become_indices_in_the_order_of_their_values(
    tmp_path: Path, y: Any, classes: tuple[str, ...], first: int
) -> None:
    raw = read(_save(tmp_path, x=np.zeros((8, 2)), y=y), OPTIONS)
    assert raw.classes == classes and raw.labels[0] == first and raw.labels.dtype == np.int64
    assert [raw.classes[label] for label in raw.labels] == [
        str(value.decode() if isinstance(value, bytes) else value).lower() for value in y.ravel().tolist()
    ]


def test_own_test_arrays_are_kept_apart_whatever_the_case_of_their_names(tmp_path: Path) -> None:
    arrays = {"X_train": np.zeros((8, 2)), "Y_train": LABELS, "X_test": np.ones((4, 2)), "Y_test": LABELS[:4]}
    raw = read(_save(tmp_path, **arrays, unrelated=np.array(3)), OPTIONS)
    assert raw.test is not None and raw.test[0].tolist() == [[1, 1]] * 4 and raw.test[1].tolist() == [0, 1, 0, 1]
    del arrays["X_test"], arrays["Y_test"]
    assert read(_save(tmp_path, **arrays), OPTIONS).test is None


def test_negative_zero_and_zero_are_the_same_row(tmp_path: Path) -> None:
    raw = read(_save(tmp_path, x=np.array([[0.0], [-0.0]] * 4), y=LABELS), OPTIONS)
    assert len({row.tobytes() for row in raw.inputs}) == 1


TABLE = np.zeros((8, 2))


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        ({"x": TABLE}, "expected arrays x and y"),
        ({"a": TABLE, "b": LABELS}, "found 'a', 'b'"),
        ({"x_train": TABLE, "y_train": LABELS, "x_test": TABLE}, "expected arrays"),
        ({"x_train": TABLE, "y_train": LABELS, "x": TABLE, "y": LABELS}, "expected arrays"),
        ({"x": TABLE, "X": TABLE, "y": LABELS}, "array 'x' is there twice"),
        ({"x": TABLE, "y": LABELS[:5]}, "8 inputs but 5 labels"),
        ({"x": np.zeros(8), "y": LABELS}, "shape (8,)"),
        ({"x": np.zeros((8, 2, 2, 2, 2)), "y": LABELS}, "images are (n, h, w)"),
        ({"x": np.zeros((8, 5, 6, 7)), "y": LABELS}, "no axis has 1, 3 or 4 channels"),
        ({"x": np.zeros((8, 3, 6, 3)), "y": LABELS}, "both axes 1 and 3"),
        ({"x": np.zeros((0, 3)), "y": LABELS[:0]}, "at least one of each"),
        ({"x": np.zeros((8, 0, 4)), "y": LABELS}, "holds no image"),
        ({"x": np.full((8, 4, 4), np.nan), "y": LABELS}, "128 pixels are NaN or infinite"),
        ({"x": np.full((8, 4, 4), np.inf), "y": LABELS}, "NaN or infinite"),
        ({"x": np.full((8, 4, 4), -0.5), "y": LABELS}, "float pixels must be 0 to 1"),
        ({"x": np.full((8, 4, 4), 1.5), "y": LABELS}, "float pixels must be 0 to 1"),
        ({"x": np.full((8, 4, 4), 256), "y": LABELS}, "pixels must be 0 to 255, got 256 to 256"),
        ({"x": np.full((8, 4, 4), -1), "y": LABELS}, "pixels must be 0 to 255"),
        ({"x": np.full((8, 4, 4), "a"), "y": LABELS}, "images must be uint8 or float"),
        ({"x": np.full((8, 4), "a"), "y": LABELS}, "features must be numbers"),
        ({"x": np.zeros((8, 4), complex), "y": LABELS}, "numbers or strings, got complex128"),
        ({"x": np.zeros((8, 4), "M8[s]"), "y": LABELS}, "numbers or strings, got datetime64"),
        ({"x": np.zeros(8, [("a", "f4"), ("b", "f4")]), "y": LABELS}, "numbers or strings"),
        ({"x": TABLE, "y": LABELS / 2}, "whole numbers or strings, got float64"),
        ({"x": TABLE, "y": np.eye(8)}, "turn one-hot rows into class numbers"),
        ({"x": TABLE, "y": np.zeros((8, 1, 1), int)}, "labels must have shape (n,)"),
        ({"x": TABLE, "y": np.zeros(8, int)}, "at least 2 classes, got only '0'"),
        ({"x": TABLE, "y": np.array(["", "a"] * 4)}, "class name ''"),
        ({"x": TABLE, "y": np.array([" ", "a"] * 4)}, "printable"),
        ({"x": TABLE, "y": np.array(["a\nb", "a"] * 4)}, "class name 'a\\nb'"),
        ({"x": TABLE, "y": np.array(["\ud800", "a"] * 4)}, "printable"),
        ({"x": TABLE, "y": np.array([b"\xff", b"a"] * 4)}, "not UTF-8"),
        (
            {"x_train": TABLE, "y_train": LABELS, "x_test": TABLE, "y_test": LABELS + 1},
            "test label '2' is out of range",
        ),
        (
            {"x_train": TABLE, "y_train": LABELS, "x_test": TABLE, "y_test": LABELS.astype(str)},
            "training labels are int64 but test labels are <U21",
        ),
        (
            {"x_train": TABLE, "y_train": LABELS, "x_test": np.zeros((8, 3)), "y_test": LABELS},
            "x_train holds inputs of shape (2,) but x_test (3,)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    path = _save(tmp_path, **arrays)
    message = refusal(read, path, OPTIONS)
    assert rule in message and str(path) in message


def test_more_classes_than_a_classifier_has_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    path = _save(tmp_path, x=np.zeros((10_001, 1)), y=np.arange(10_001))
    assert "10,001 different labels" in refusal(read, path, OPTIONS)


class _Attack:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.target), "w"))


def test_an_object_array_is_refused_and_never_unpickled(tmp_path: Path, refusal: Refusal) -> None:
    evil = tmp_path / "evil"
    attack = np.array([_Attack(evil)] * 8, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickle.dumps(attack)  # it can be pickled, so saving it is what an attacker would do
    for arrays in ({"x": attack, "y": LABELS}, {"x": TABLE, "y": attack}):
        assert "could run code" in refusal(read, _save(tmp_path, **arrays), OPTIONS)
    assert not evil.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array",
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (8, 2)"),
        _header("{'descr': '<f8', 'fortran_order': False}"),
        _header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (8, 2), }"),
        _header("(" * 5000),
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (-8, -2), }"),
        _header("{'descr': '<U0', 'fortran_order': False, 'shape': (8, 2), }"),
        _header("{'descr': '<f8', 'fortran_order': False, 'shape': (8, 2), }", version=9),
        _header("[" * 200_000, version=2),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, content: bytes, refusal: Refusal) -> None:
    message = refusal(read, _zip(tmp_path, x=content, y=_npy(LABELS)), OPTIONS)
    assert "not a valid .npy header" in message or "must hold numbers" in message


@pytest.mark.parametrize("change", [-8, 8])
def test_an_array_shorter_or_longer_than_its_header_is_refused(tmp_path: Path, change: int, refusal: Refusal) -> None:
    content = _npy(TABLE)
    content = content[:change] if change < 0 else content + b"\0" * change
    message = refusal(read, _zip(tmp_path, x=content, y=_npy(LABELS)), OPTIONS)
    assert f"promises 128 bytes of float64 (8, 2), it holds {128 + change}" in message


def test_a_zip_bomb_is_refused_by_its_declared_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    path = _save(tmp_path, x=np.zeros((8, 1 << 20)), y=LABELS)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(limits, "LARGEST_BYTES", 1 << 20)
    assert "when unpacked; the limit is 1,048,576" in refusal(read, path, OPTIONS)


def test_a_header_that_promises_more_than_the_limit_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    header = _header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 999), }")
    assert "the limit is" in refusal(read, _zip(tmp_path, x=header, y=_npy(LABELS)), OPTIONS)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    path = _zip(tmp_path, x=_npy(np.zeros((8, 1000))), y=_npy(LABELS))
    size = len(_npy(np.zeros((8, 1000))))
    content = path.read_bytes()
    assert content.count(size.to_bytes(4, "little")) == 2  # local header and directory
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (200).to_bytes(4, "little")))
    assert "not a readable npz archive" in refusal(read, path, OPTIONS)


def test_a_damaged_archive_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    path = _save(tmp_path, x=np.random.default_rng(0).normal(size=(8, 50)), y=LABELS)
    whole = path.read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2], whole[:300] + b"\xff" * 50 + whole[350:]):
        path.write_bytes(content)
        assert "not a readable npz archive" in refusal(read, path, OPTIONS)


def test_an_encrypted_member_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    path = _zip(tmp_path, x=_npy(TABLE), y=_npy(LABELS))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(read, path, OPTIONS)
