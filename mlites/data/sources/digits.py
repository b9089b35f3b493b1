"""Handwritten digits that ship with scikit-learn: 1,797 grey images of 8x8 pixels with 17 levels.

Source: Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.
"""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mlites.data.raw import RawData
from mlites.errors import InputError
from mlites.files import digest_file, digest_json
from mlites.recipe import Data

LEVELS = 16  # a pixel counts the set points of a 4x4 block


def read(path: Path | None, options: Data) -> RawData:
    """Load the images as uint8 0..16."""
    from sklearn.datasets import load_digits  # a second to import

    images, labels = load_digits().images, load_digits().target
    return RawData(
        inputs=images.astype(np.uint8)[:, None],
        labels=labels.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
        scale=1 / LEVELS,
    )


def digest() -> str:
    """SHA-256 over scikit-learn's version and its data file, without importing it.

    Raises:
        InputError: scikit-learn is not installed.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise InputError("data source digits: scikit-learn is not installed; pip install scikit-learn")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    return digest_json({"scikit-learn": version("scikit-learn"), "digits": digest_file(file)})
