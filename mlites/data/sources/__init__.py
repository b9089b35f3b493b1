"""The readers: which function reads which source of a recipe."""

from collections.abc import Callable
from pathlib import Path

from mlites.data.raw import RawData
from mlites.data.sources import digits, idx, imagefolder, npz, table
from mlites.recipe import Data

READERS: dict[str, Callable[[Path | None, Data], RawData]] = {
    "digits": digits.read,
    "idx": idx.read,
    "npz": npz.read,
    "csv": table.read_csv,
    "parquet": table.read_parquet,
    "imagefolder": imagefolder.read,
}
