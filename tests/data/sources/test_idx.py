"""IDX files: read as MNIST publishes them, refused when anything in them does not add up."""

import gzip
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlites.data import raw as limits
from mlites.data.sources.idx import read, read_idx
from mlites.recipe import Data

Refusal = Callable[..., str]
OPTIONS = Data(source="idx", path="anywhere")


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _write(folder: Path, prefix: str, rows: int, *, packed: bool = False, first: int = 0) -> np.ndarray:
    images = (np.arange(rows * 12, dtype=np.uint32) * 7 + first).astype(np.uint8).reshape(rows, 3, 4)
    labels = np.arange(rows) % 3
    for name, array in ((f"{prefix}images-idx3-ubyte", images), (f"{prefix}labels-idx1-ubyte", labels)):
        content = _idx(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("packed", [False, True])
def test_training_and_test_files_are_read(tmp_path: Path, packed: bool) -> None:
    train, test = _write(tmp_path, "train-", 9, packed=packed), _write(tmp_path, "t10k-", 6, packed=packed, first=5)
    raw = read(tmp_path, OPTIONS)
    assert np.array_equal(raw.inputs, train[:, None]) and raw.labels.tolist() == [0, 1, 2] * 3
    assert raw.test is not None
    assert np.array_equal(raw.test[0], test[:, None]) and raw.test[1].tolist() == [0, 1, 2] * 2
    assert raw.classes == ("0", "1", "2") and raw.scale == 1 / 255


@pytest.mark.parametrize("prefix", ["", "train-", "t10k-", "emnist-letters-train-"])
def test_a_single_pair_has_no_test_set(tmp_path: Path, prefix: str) -> None:
    _write(tmp_path, prefix, 9)
    assert read(tmp_path, OPTIONS).test is None


def test_a_plain_file_is_preferred_to_its_gzip(tmp_path: Path) -> None:
    _write(tmp_path, "train-", 9)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    assert len(read(tmp_path, OPTIONS).inputs) == 9


def test_colour_images_are_read(tmp_path: Path) -> None:
    images = np.arange(6 * 5 * 4 * 3).reshape(6, 5, 4, 3) % 256
    (tmp_path / "train-images-idx4-ubyte").write_bytes(_idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(np.arange(6) % 2))
    assert np.array_equal(read(tmp_path, OPTIONS).inputs, images.transpose(0, 3, 1, 2))


PACKED = gzip.compress(_idx(np.random.default_rng(0).integers(0, 256, (30, 40))), mtime=0)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "not an IDX file: it begins with nothing"),
        (b"\0\0\x08", "not an IDX file"),
        (b"PK\3\4" + b"\0" * 40, "not an IDX file: it begins with 504b0304"),
        (b"\0\0\x08\x05" + b"\0" * 40, "not an IDX file"),
        (b"\0\0\x0d\x03" + b"\0" * 40, "0x0d; only unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0", "truncated within its header"),
        (_idx(np.zeros((3, 4)))[:-1], "truncated: its header promises 12 bytes (3, 4), it holds 11"),
        (_idx(np.zeros((3, 4))) + b"\0", "more than the 12 bytes"),
        (PACKED[:-9], "damaged gzip"),
        (PACKED[:500] + b"\xff" * 100 + PACKED[600:], "damaged gzip"),
        (PACKED[:-8] + b"\0" * 8, "damaged gzip: CRC check failed"),
        (struct.pack(">HBB4I", 0, 8, 4, *[0xFFFFFFFF] * 4), "the limit is"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes, rule: str, refusal: Refusal) -> None:
    (tmp_path / "file").write_bytes(content)
    message = refusal(read_idx, tmp_path / "file")
    assert rule in message and str(tmp_path / "file") in message


def test_a_header_that_promises_gigabytes_costs_no_memory(tmp_path: Path, refusal: Refusal) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "file").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 1_000_000, 60, 60) + b"\0" * 100)
    assert "it holds 100" in refusal(read_idx, tmp_path / "file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_gzip_bomb_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setattr(limits, "LARGEST_BYTES", 1000)
    bomb = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 1001) + b"\0" * 10_000_000)
    (tmp_path / "file").write_bytes(bomb)
    assert "1,001 bytes when unpacked; the limit is 1,000" in refusal(read_idx, tmp_path / "file")
    (tmp_path / "file").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 999) + b"\0" * 10_000_000))
    assert "more than the 999 bytes" in refusal(read_idx, tmp_path / "file")


def test_counts_that_do_not_match_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    _write(tmp_path, "train-", 9)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(np.arange(8) % 3))
    assert "9 inputs but 8 labels" in refusal(read, tmp_path, OPTIONS)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros((9, 10))))
    assert "labels must have 1 dimension, got 2" in refusal(read, tmp_path, OPTIONS)


def test_a_test_label_that_training_lacks_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    _write(tmp_path, "train-", 9)
    _write(tmp_path, "t10k-", 9)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.arange(9)))
    assert "test label '3' is out of range" in refusal(read, tmp_path, OPTIONS)


def test_test_images_of_another_size_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    _write(tmp_path, "train-", 9)
    _write(tmp_path, "t10k-", 9)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(_idx(np.zeros((9, 4, 4))))
    assert "training images are (1, 3, 4) but test images (1, 4, 4)" in refusal(read, tmp_path, OPTIONS)


def test_a_folder_without_a_clear_pair_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    assert "found no IDX file" in refusal(read, tmp_path, OPTIONS)
    assert "idx needs a folder" in refusal(read, tmp_path / "none", OPTIONS)
    _write(tmp_path, "one-", 9)
    _write(tmp_path, "two-", 9)
    assert "one pair of training files" in refusal(read, tmp_path, OPTIONS)


@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_a_missing_half_is_named(tmp_path: Path, kind: str, refusal: Refusal) -> None:
    _write(tmp_path, "train-", 9)
    (tmp_path / f"train-{kind}-ubyte").unlink()
    assert f"has no file of {kind.split('-')[0]} beside it" in refusal(read, tmp_path, OPTIONS)


def test_an_unreadable_file_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    assert "cannot read: No such file" in refusal(read_idx, tmp_path / "none")
