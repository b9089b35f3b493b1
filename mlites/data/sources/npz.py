"""NumPy archives: x and y, or x_train, y_train and optionally x_test, y_test; never unpickled."""

import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.dataset import Inputs
from mlites.data.raw import RawData, encode_labels, same_rows, to_images, to_table, within_limit
from mlites.errors import InputError
from mlites.recipe import Data

PIECE = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError)


def read(path: Path | None, options: Data) -> RawData:
    """Read images (3 or 4 dimensions) or a table (2 dimensions); names may be in upper or lower case.

    Raises:
        InputError: not a zip, missing arrays, object arrays, sizes beyond the limit, shapes that do not fit.
    """
    assert path is not None
    with _opened(path) as archive:
        arrays = _read_arrays(archive, path)
    own = "x_train" in arrays
    x, y = ("x_train", "y_train") if own else ("x", "y")
    inputs = _inputs(arrays[x], f"{path}: {x}")
    same_rows(inputs, arrays[y], str(path))
    labels, test_labels, classes = encode_labels(arrays[y], arrays.get("y_test"), f"{path}: {y}")
    columns = tuple(f"x{index}" for index in range(inputs.shape[1])) if inputs.ndim == 2 else ()
    scale = 1.0 if columns else 1 / 255
    if test_labels is None:
        return RawData(inputs, labels, classes, scale, columns)
    test = _inputs(arrays["x_test"], f"{path}: x_test")
    same_rows(test, test_labels, f"{path}: x_test")
    if test.shape[1:] != inputs.shape[1:]:
        raise InputError(f"{path}: {x} holds inputs of shape {inputs.shape[1:]} but x_test {test.shape[1:]}")
    return RawData(inputs, labels, classes, scale, columns, (test, test_labels))


def read_rows(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Rows ``x`` (n, ...) as a model takes them, and the index ``y`` (n,) of each row's class if it is there.

    Raises:
        InputError: not a zip, no x, object arrays, sizes beyond the limit, NaN, or another y than one class a row.
    """
    x, y = read_arrays(path)
    inputs = x.astype(np.float32)
    if not np.isfinite(inputs).all():
        raise InputError(f"{path}: x holds NaN or infinity")
    if y is None:
        return inputs, None
    if y.dtype.kind not in "ui" or y.shape != x.shape[:1] or y.min() < 0:
        raise InputError(f"{path}: y must be one class index a row, 0 or more, got {y.dtype} of shape {y.shape}")
    return inputs, y.astype(np.int64)


def read_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Rows ``x`` (n, ...) of any number type, as they are stored, and ``y`` if it is there.

    Raises:
        InputError: not a zip, no x, object arrays, sizes beyond the limit, no numbers.
    """
    with _opened(path) as archive:
        members = _members(archive, path)
        if "x" not in members:
            found = ", ".join(ascii(name[:40]) for name in sorted(members)[:10]) or "nothing"
            raise InputError(f"{path}: expected an array x, and y if there are labels, found {found}")
        names = [name for name in ("x", "y") if name in members]
        within_limit(sum(members[name].file_size for name in names), path)
        arrays = {name: _read_array(archive, members[name], f"{path}: {name}") for name in names}
    x = arrays["x"]
    if x.dtype.kind not in "buif" or x.ndim < 2 or not len(x):
        raise InputError(f"{path}: x must be numbers of shape (rows, ...), got {x.dtype} of shape {x.shape}")
    return x, arrays.get("y")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: not a readable npz archive: {reason}") from None


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy").lower()
        if name in members:
            raise InputError(f"{path}: array {name!r} is there twice")
        members[name] = info
    return members


def _inputs(array: NDArray[Any], place: str) -> Inputs:
    return to_table(array, place) if array.ndim == 2 else to_images(array, place)


def _read_arrays(archive: zipfile.ZipFile, path: Path) -> dict[str, NDArray[Any]]:
    members = _members(archive, path)
    own = {"x_train", "y_train"}
    wanted = own | ({"x_test", "y_test"} & set(members)) if own & set(members) else {"x", "y"}
    if {"x_test", "y_test"} & wanted:
        wanted |= {"x_test", "y_test"}
    missing = sorted(wanted - set(members))
    if missing or (own <= wanted and {"x", "y"} & set(members)):
        found = ", ".join(ascii(name[:40]) for name in sorted(members)[:10]) or "nothing"
        raise InputError(f"{path}: expected arrays x and y, or x_train, y_train, x_test and y_test, found {found}")
    within_limit(sum(members[name].file_size for name in wanted), path)
    return {name: _read_array(archive, members[name], f"{path}: {name}") for name in sorted(wanted)}


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> NDArray[Any]:
    """Read one .npy member without numpy's loader, which trusts the header with memory and may unpickle."""
    with archive.open(info) as file:
        shape, fortran, dtype = _read_header(file, place)
        size = math.prod(shape) * dtype.itemsize
        within_limit(size, place)
        content = bytearray()
        while len(content) <= size:
            piece = file.read(PIECE)
            if not piece:
                break
            content += piece
    if len(content) != size:
        raise InputError(f"{place}: its header promises {size:,} bytes of {dtype} {shape}, it holds {len(content):,}")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(file: Any, place: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote; they are fine
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = reader(file)
    except (ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        raise InputError(f"{place}: not a valid .npy header") from None
    if dtype.hasobject:
        raise InputError(f"{place}: an object array, which is refused because reading it could run code; save numbers")
    if dtype.kind not in "buifUS" or dtype.itemsize == 0:
        raise InputError(f"{place}: arrays must hold numbers or strings, got {dtype}")
    if min(shape, default=1) < 0:
        raise InputError(f"{place}: not a valid .npy header: shape {shape}")
    return shape, fortran, dtype
