"""A prepared dataset: three splits in safetensors, the numbers that normalise them, and a digest over all of it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlites.errors import InputError
from mlites.files import canonical_json, digest_file, digest_json, read_document, write_atomically

FORMAT = "mlites-data/1"
SPLITS = ("train", "validation", "test")
TASKS = {"image-classification": 3, "tabular-classification": 1}  # task -> dimensions of one input

Inputs = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Preprocessing:
    """What turns raw inputs into a model's: ``(raw * scale - mean) / std`` along axis 1.

    Attributes:
        scale: 1/255 for 8-bit images, 1 for tables.
        mean: of the scaled training rows, one for each channel or feature.
        std: the same, never 0.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have the same length >= 1, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(value) for value in (self.scale, *self.mean, *self.std)):
            raise ValueError("scale, mean and std must be finite")
        if self.scale <= 0 or min(self.std) <= 0:
            raise ValueError("scale and std must be above 0")

    def apply(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise (n, channels, height, width) or (n, features); the input is left unchanged.

        Raises:
            ValueError: axis 1 does not have one channel or feature for each mean.
        """
        if raw.ndim < 2 or raw.shape[1] != len(self.mean):
            raise ValueError(f"inputs must have {len(self.mean)} channels or features on axis 1, got shape {raw.shape}")
        across = (1, -1) + (1,) * (raw.ndim - 2)
        out = np.array(raw, dtype=np.float32, order="C")
        out *= np.float32(self.scale)
        out -= np.asarray(self.mean, np.float32).reshape(across)
        out /= np.asarray(self.std, np.float32).reshape(across)
        return out

    def to_json(self) -> dict[str, Any]:
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Any) -> "Preprocessing":
        """Read back what ``to_json`` wrote.

        Raises:
            ValueError: anything else.
        """
        if not isinstance(value, dict) or set(value) != {"scale", "mean", "std"}:
            raise ValueError("preprocessing must be a mapping with scale, mean and std")
        if not isinstance(value["mean"], list) or not isinstance(value["std"], list):
            raise ValueError("mean and std must be lists")
        numbers = [value["scale"], *value["mean"], *value["std"]]
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise ValueError("scale, mean and std must be numbers")
        return cls(float(value["scale"]), tuple(map(float, value["mean"])), tuple(map(float, value["std"])))


@dataclass(frozen=True)
class Dataset:
    """A dataset folder whose files have the digests that its ``data.json`` states.

    Attributes:
        folder: where the splits lie.
        task: image-classification or tabular-classification.
        source: what it was read from: digits, idx, npz, csv, parquet or imagefolder.
        classes: name of each class; a label is an index into it.
        input_shape: of one input: (channels, height, width) or (features,).
        preprocessing: from raw inputs to a model's.
        rows: in each split.
        digest: SHA-256 over everything above and the files.
    """

    folder: Path
    task: str
    source: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing
    rows: dict[str, int]
    digest: str

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read ``data.json`` and verify every file against it.

        Raises:
            InputError: a file is missing, altered or not of this format.
        """
        document = _read_document(folder / "data.json")
        try:
            dataset = cls(
                folder=folder,
                task=document["task"],
                source=document["source"],
                classes=tuple(document["classes"]),
                input_shape=tuple(document["input_shape"]),
                preprocessing=Preprocessing.from_json(document["preprocessing"]),
                rows=dict(document["rows"]),
                digest=document["digest"],
            )
            fault = _fault(dataset, document["files"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / 'data.json'}: not a valid {FORMAT} document: {error}") from None
        if fault:
            raise InputError(f"{folder / 'data.json'}: not a valid {FORMAT} document: {fault}")
        for name, digest in document["files"].items():
            path = folder / name
            if not path.is_file():
                raise InputError(f"{path}: missing; prepare the dataset again")
            if digest_file(path) != digest:
                raise InputError(f"{path}: altered since it was written (SHA-256 differs from data.json)")
        return dataset

    def split(self, name: str) -> tuple[Inputs, NDArray[np.int64]]:
        """Raw inputs (n, \\*input_shape), uint8 or float32, and labels (n,) of train, validation or test.

        Raises:
            InputError: the file does not hold what data.json says.
        """
        if name not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
        path = self.folder / f"{name}.safetensors"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not readable as safetensors: {error}") from None
        shape = (self.rows[name], *self.input_shape)
        kind = np.uint8 if self.task == "image-classification" else np.float32
        inputs, labels = tensors.get("inputs"), tensors.get("labels")
        if inputs is None or inputs.shape != shape or inputs.dtype != kind:
            raise InputError(f"{path}: inputs must be {np.dtype(kind)} of shape {shape}")
        if labels is None or labels.shape != shape[:1] or labels.dtype != np.int64:
            raise InputError(f"{path}: labels must be int64 of shape {shape[:1]}")
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.classes)):
            raise InputError(f"{path}: labels must be 0 to {len(self.classes) - 1}")
        return inputs, labels

    def normalised_for(self, preprocessing: dict[str, Any]) -> "Dataset":
        """The same rows as a model wants them that was trained with other numbers than this dataset's own.

        Raises:
            InputError: the model's numbers are for another count of channels or features.
        """
        try:
            numbers = Preprocessing.from_json(preprocessing)
        except ValueError as error:
            raise InputError(f"the model's preprocessing cannot be read: {error}; export the model again") from None
        if len(numbers.mean) != self.input_shape[0]:
            raise InputError(
                f"the model normalises {len(numbers.mean)} channels or features, the data has {self.input_shape[0]}; "
                "train on data of the same shape"
            )
        return replace(self, preprocessing=numbers)

    def arrays(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Model inputs (n, \\*input_shape), contiguous, and labels (n,) of train, validation or test."""
        inputs, labels = self.split(name)
        return self.preprocessing.apply(inputs), labels


def write_dataset(
    folder: Path,
    *,
    task: str,
    source: str,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    splits: dict[str, tuple[Inputs, NDArray[np.int64]]],
    extra: tuple[str, ...] = (),
) -> Dataset:
    """Write splits and ``data.json`` into an existing folder; equal content gives equal bytes.

    Args:
        folder: where to; the caller makes it appear whole (``mlites.files.new_folder``).
        task: image-classification or tabular-classification.
        source: name of the source.
        classes: name of each class.
        preprocessing: from raw inputs to a model's.
        splits: train, validation and test, each inputs (n, ...) and labels (n,).
        extra: names of files already in the folder that the digest covers.
    """
    for name in SPLITS:
        inputs, labels = splits[name]
        save_file(
            {"inputs": np.ascontiguousarray(inputs), "labels": np.ascontiguousarray(labels, dtype=np.int64)},
            folder / f"{name}.safetensors",
        )
    rows = {name: len(splits[name][1]) for name in SPLITS}
    document: dict[str, Any] = {
        "format": FORMAT,
        "task": task,
        "source": source,
        "classes": list(classes),
        "input_shape": list(splits["train"][0].shape[1:]),
        "rows": rows,
        "preprocessing": preprocessing.to_json(),
        "files": {name: digest_file(folder / name) for name in (*(f"{split}.safetensors" for split in SPLITS), *extra)},
    }
    document["digest"] = digest_json(document)
    write_atomically(folder / "data.json", canonical_json(document))
    return Dataset.load(folder)


def _read_document(path: Path) -> dict[str, Any]:
    document = read_document(path, FORMAT, "dataset's description")
    try:
        altered = digest_json({key: value for key, value in document.items() if key != "digest"}) != document["digest"]
    except (KeyError, ValueError):
        altered = True
    if altered:
        raise InputError(f"{path}: altered since it was written (its digest does not fit its content)")
    return document


def _fault(dataset: Dataset, files: dict[str, str]) -> str | None:
    """The first rule that a data.json breaks though its digest fits."""
    shape, classes = dataset.input_shape, dataset.classes
    if dataset.task not in TASKS or len(shape) != TASKS[dataset.task]:
        return f"task {dataset.task!r} does not go with inputs of shape {shape}"
    if not all(isinstance(edge, int) and edge > 0 for edge in shape):
        return f"input_shape must be positive whole numbers, got {shape}"
    if len(dataset.preprocessing.mean) != shape[0]:
        return f"preprocessing must have {shape[0]} means, got {len(dataset.preprocessing.mean)}"
    if len(classes) < 2 or len(set(classes)) != len(classes) or not all(isinstance(name, str) for name in classes):
        return "classes must be at least 2 different names"
    if set(dataset.rows) != set(SPLITS) or not all(isinstance(n, int) and n > 0 for n in dataset.rows.values()):
        return "rows must be positive whole numbers for train, validation and test"
    if not {f"{split}.safetensors" for split in SPLITS} <= set(files) or any(Path(name).name != name for name in files):
        return "files must name train.safetensors, validation.safetensors and test.safetensors, without folders"
    return None
