"""IDX files, the format of MNIST and its successors, plain or gzipped.

Source: LeCun, Cortes & Burges (1998), The MNIST database of handwritten digits.
"""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlites.data.raw import RawData, encode_labels, same_rows, to_images, within_limit
from mlites.errors import InputError
from mlites.recipe import Data

NAME = re.compile(r"(?P<prefix>.*?)[-_.]?(?P<kind>images|labels)[-_.]idx[134]-ubyte(\.gz)?")
UNSIGNED_BYTE = 0x08
PIECE = 1 << 20


def read(path: Path | None, options: Data) -> RawData:
    """Read a folder that holds train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz.

    t10k- or test- files beside them are the source's own test set. A single pair may have any prefix.

    Raises:
        InputError: missing, ambiguous, truncated or malformed files.
    """
    assert path is not None
    train, test = _find_pairs(path)
    images, labels = _read_pair(*train)
    own = _read_pair(*test) if test else None
    encoded, own_encoded, classes = encode_labels(labels, own[1] if own else None, str(path))
    if own is None or own_encoded is None:
        return RawData(images, encoded, classes, 1 / 255)
    if own[0].shape[1:] != images.shape[1:]:
        raise InputError(f"{path}: training images are {images.shape[1:]} but test images {own[0].shape[1:]}")
    return RawData(images, encoded, classes, 1 / 255, test=(own[0], own_encoded))


def _find_pairs(folder: Path) -> tuple[tuple[Path, Path], tuple[Path, Path] | None]:
    if not folder.is_dir():
        raise InputError(f"{folder}: idx needs a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # a plain file replaces its .gz: it sorts first
        match = NAME.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["prefix"], {})[match["kind"]] = path
    tests = [prefix for prefix in found if prefix.endswith(("t10k", "test"))]
    trains = [prefix for prefix in found if prefix not in tests]
    if not trains:
        trains, tests = tests, []
    if len(trains) != 1 or len(tests) > 1:
        names = ", ".join(sorted(file.name for pair in found.values() for file in pair.values())) or "no IDX file"
        raise InputError(f"{folder}: expected one pair of training files and at most one of test files, found {names}")
    return _pair(folder, found[trains[0]]), _pair(folder, found[tests[0]]) if tests else None


def _pair(folder: Path, files: dict[str, Path]) -> tuple[Path, Path]:
    if len(files) != 2:
        (present,) = files.values()
        missing = "labels" if "images" in files else "images"
        raise InputError(f"{folder}: {present.name} has no file of {missing} beside it")
    return files["images"], files["labels"]


def _read_pair(images_path: Path, labels_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if labels.ndim != 1:
        raise InputError(f"{labels_path}: labels must have 1 dimension, got {labels.ndim}")
    same_rows(images, labels, str(images_path))
    return to_images(images, str(images_path)), labels


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one file of unsigned bytes.

    Raises:
        InputError: wrong magic number, sizes beyond the limit, too few or too many bytes, damaged gzip.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not packed:
                return _read_open(path, plain)
            with gzip.GzipFile(fileobj=plain) as unpacked:
                return _read_open(path, unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip: {str(error).rstrip('.')}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from None


def _read_open(path: Path, file: BinaryIO | gzip.GzipFile) -> NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or not 1 <= head[3] <= 4:
        raise InputError(f"{path}: not an IDX file: it begins with {head.hex() or 'nothing'}, expected 0000 08 01..04")
    if head[2] != UNSIGNED_BYTE:
        raise InputError(f"{path}: IDX element type 0x{head[2]:02x}; only unsigned bytes (0x08) are read")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise InputError(f"{path}: truncated within its header")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    count = 1
    for size in shape:
        count *= size
    within_limit(count, path)
    content = _read_exactly(file, count)
    if len(content) < count:
        raise InputError(f"{path}: truncated: its header promises {count:,} bytes {shape}, it holds {len(content):,}")
    if file.read(1):
        raise InputError(f"{path}: holds more than the {count:,} bytes {shape} that its header promises")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_exactly(file: Any, count: int) -> bytearray:
    """At most count bytes; memory grows with what is there, not with what a header promises."""
    content = bytearray()
    while len(content) < count:
        piece = file.read(min(PIECE, count - len(content)))
        if not piece:
            break
        content += piece
    return content
