"""What a source hands over: images or a table as arrays, labels as class indices, and the checks that make them so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.dataset import Inputs
from mlites.errors import InputError

LARGEST_BYTES = 4 << 30  # of one array in memory: the splits are held whole, so more would end the process, not help it
LARGEST_CLASSES = 10_000
LONGEST_NAME = 200
CHANNELS = (1, 3, 4)

Rows = tuple[Inputs, NDArray[np.int64]]


@dataclass(frozen=True)
class RawData:
    """Everything a source holds, before splitting.

    Attributes:
        inputs: images (n, channels, height, width) uint8, or a table (n, features) float32 in which NaN is a null.
        labels: (n,) indices into classes.
        classes: names in the order of their values.
        scale: what brings raw values to about 0..1; 1 for a table.
        columns: name of each feature of a table; empty for images.
        test: the source's own test rows, if it has any.
    """

    inputs: Inputs
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    scale: float
    columns: tuple[str, ...] = ()
    test: Rows | None = None


def within_limit(size: int, place: str | Path) -> None:
    """Refuse what would not fit, by its declared size in bytes, before anything is read."""
    if size > LARGEST_BYTES:
        raise InputError(f"{place}: holds {size:,} bytes when unpacked; the limit is {LARGEST_BYTES:,}")


def to_images(array: NDArray[Any], place: str) -> NDArray[np.uint8]:
    """Bring (n, h, w), (n, h, w, c) or (n, c, h, w) to uint8 (n, c, h, w).

    Whole numbers must lie in 0..255. Fractions must lie in 0..1; they are multiplied by 255 and rounded.

    Raises:
        InputError: another shape, range or type.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if first == last:
            why = "both axes 1 and 3 could be channels" if first else "no axis has 1, 3 or 4 channels"
            raise InputError(f"{place}: shape {array.shape}: {why}; expected (n, h, w), (n, h, w, c) or (n, c, h, w)")
        if last:
            array = array.transpose(0, 3, 1, 2)
    else:
        raise InputError(f"{place}: shape {array.shape}; images are (n, h, w), (n, h, w, c) or (n, c, h, w)")
    if 0 in array.shape:
        raise InputError(f"{place}: shape {array.shape} holds no image; expected at least one row and pixel")
    if array.dtype.kind == "f":
        return _float_images(array, place)
    if array.dtype.kind not in "bui":
        raise InputError(f"{place}: images must be uint8 or float, got {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise InputError(f"{place}: pixels must be 0 to 255, got {low} to {high}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _float_images(array: NDArray[Any], place: str) -> NDArray[np.uint8]:
    broken = int(array.size - np.isfinite(array).sum())
    if broken:
        raise InputError(f"{place}: {broken:,} pixels are NaN or infinite; every pixel must be a number")
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return np.ascontiguousarray(np.rint(array * 255), dtype=np.uint8)
    if low < 0 or high > 255 or not bool((array == np.rint(array)).all()):
        raise InputError(
            f"{place}: float pixels must be 0 to 1, or whole numbers 0 to 255, got {low:.6g} to {high:.6g}; "
            "give images before normalisation"
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def to_table(array: NDArray[Any], place: str) -> NDArray[np.float32]:
    """Bring (n, features) numbers to float32; NaN stays, and a value beyond float32 becomes infinite.

    Raises:
        InputError: another shape or type.
    """
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{place}: shape {array.shape}; a table is (rows, features), at least one of each")
    if array.dtype.kind not in "buif":
        raise InputError(f"{place}: features must be numbers, got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        table = np.ascontiguousarray(array, dtype=np.float32)
    return table + np.float32(0)  # -0.0 becomes 0.0, so that equal rows have equal bytes


def encode_labels(
    train: NDArray[Any], test: NDArray[Any] | None, place: str
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, tuple[str, ...]]:
    """Number the classes in the order of their values.

    Args:
        train: whole numbers, booleans or strings, (n,) or (n, 1).
        test: the same for the source's own test rows.
        place: for messages.

    Returns:
        Labels (n,) of train and test, and the name of each class.

    Raises:
        InputError: fractions, no or one class, too many, a name nobody could read, a test label unknown to train.
    """
    train = _label_column(train, place)
    values, encoded = np.unique(train, return_inverse=True)
    if len(values) > LARGEST_CLASSES:
        raise InputError(
            f"{place}: {len(values):,} different labels; at most {LARGEST_CLASSES:,} (a regression target?)"
        )
    classes = tuple(_class_name(value, place) for value in values)
    if len(classes) < 2:
        only = f"only {classes[0]!r}" if classes else "none"
        raise InputError(f"{place}: a classifier needs at least 2 classes, got {only}")
    if test is None:
        return encoded.astype(np.int64), None, classes
    test = _label_column(test, place)
    if test.dtype.kind != train.dtype.kind and "U" in (test.dtype.kind, train.dtype.kind):
        raise InputError(f"{place}: training labels are {train.dtype} but test labels are {test.dtype}")
    unknown = np.setdiff1d(test, values)
    if len(unknown):
        raise InputError(
            f"{place}: test label {_class_name(unknown[0], place)!r} is out of range: no training row has it"
        )
    return encoded.astype(np.int64), np.searchsorted(values, test).astype(np.int64), classes


def same_rows(inputs: NDArray[Any], labels: NDArray[Any], place: str) -> None:
    """Refuse inputs and labels of different number."""
    if len(inputs) != len(labels):
        raise InputError(
            f"{place}: {len(inputs):,} inputs but {len(labels):,} labels; there must be one label an input"
        )


def _label_column(labels: NDArray[Any], place: str) -> NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = "; turn one-hot rows into class numbers" if labels.ndim == 2 else ""
        raise InputError(f"{place}: labels must have shape (n,), got {labels.shape}{hint}")
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{place}: labels are bytes that are not UTF-8 text") from None
    if labels.dtype.kind not in "buiU":
        raise InputError(f"{place}: labels must be whole numbers or strings, got {labels.dtype}")
    return labels


def _class_name(value: Any, place: str) -> str:
    name = str(value).lower() if isinstance(value, np.bool_) else str(value)
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or not name.strip():
        shown = ascii(name[:40])
        raise InputError(f"{place}: class name {shown} must be 1 to {LONGEST_NAME} printable characters, not blank")
    return name
