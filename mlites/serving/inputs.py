"""Rows to predict from a file or folder: npz, npy, csv, parquet, one image or a folder of them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.raw import within_limit
from mlites.data.sources.imagefolder import SUFFIXES, read_images
from mlites.data.sources.npz import read_arrays
from mlites.data.sources.table import read_features
from mlites.errors import InputError
from mlites.serving.release import Release

TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class Inputs:
    """Raw rows and what to call them.

    Attributes:
        rows: (n, ...), as the data hold them.
        names: of each row: its file, or its number.
    """

    rows: NDArray[Any]
    names: tuple[str, ...]


def read_inputs(path: Path, release: Release, label: str | None = None) -> Inputs:
    """Read rows for a model.

    Args:
        path: an archive with an array ``x``, an array, a table, an image, or a folder of images at any depth.
        release: of the model; images are brought to its size and its number of channels.
        label: column of a table that is no feature.

    Raises:
        InputError: it cannot be read, or is of another kind than the model takes.
    """
    suffix, shape = path.suffix.lower(), release.input_shape
    images = len(shape) == 3
    if path.is_dir() or suffix in SUFFIXES:
        if not images:
            raise InputError(f"{path}: images, but {release.model} takes rows of {shape[0]} numbers")
        files = _find_images(path) if path.is_dir() else [path]
        names = tuple(file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files)
        pixels = read_images(files, channels=shape[0], size=(shape[2], shape[1]))
        return Inputs(_rescale(pixels, float(release.preprocessing["scale"])), names)
    if suffix in TABLES:
        if images:
            raise InputError(f"{path}: a table, but {release.model} takes images of shape {shape}")
        rows = read_features(path, label)
    elif suffix == ".npz":
        rows, _ = read_arrays(path)
    elif suffix == ".npy":
        rows = _read_array(path)
    else:
        known = ", ".join((".npz", ".npy", *TABLES, *SUFFIXES))
        raise InputError(f"{path}: expected a folder of images, or a file of {known}")
    return Inputs(rows, tuple(map(str, range(len(rows)))))


def _find_images(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder}: no images below ({', '.join(SUFFIXES)})")
    return files


def _rescale(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """From 0..255 of an image file to 0..1/scale of the data that the model was trained on."""
    if math.isclose(scale, 1 / 255):
        return pixels
    return np.rint(pixels / (255 * scale)).clip(0, 255).astype(np.uint8)


def _read_array(path: Path) -> NDArray[Any]:
    try:
        within_limit(path.stat().st_size, path)
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable npy array: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif" or array.ndim < 2 or not len(array):
        raise InputError(f"{path}: expected numbers of shape (rows, ...)")
    return array
