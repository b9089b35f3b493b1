"""A folder for each class with its images in it: root/cat/1.png, or root/train/cat/1.png and root/test/cat/9.png."""

import stat
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mlites.data.raw import RawData, encode_labels, within_limit
from mlites.errors import InputError
from mlites.recipe import Data

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # the other decoders stay out of reach of hostile files
LARGEST_PIXELS = 64_000_000  # of one image
IGNORED = ("thumbs.db", "desktop.ini")
TRAIN_NAMES, VALIDATION_NAMES, TEST_NAMES = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")

Mode = Literal["L", "RGB", "RGBA"]
MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
Example = tuple[Path, str]  # image, class


def read(path: Path | None, options: Data) -> RawData:
    """Decode every image to one mode (grey if all are grey, else RGB) and one size.

    The size is image_size squared, or that of the first image by name. A test/ folder beside train/ is the source's own
    test set; a val/ folder takes its place if there is none, else its images join the training images.

    Raises:
        InputError: a file that is not an image, leads out of the folder, or is too large; a class without images.
    """
    assert path is not None
    if not path.is_dir():
        raise InputError(f"{path}: imagefolder needs a folder with one folder for each class")
    train, test = _find_images(path)
    grey, first = _inspect([file for file, _ in train + test])
    size = (options.image_size, options.image_size) if options.image_size else first
    mode: Mode = "L" if grey else "RGB"
    within_limit(len(train + test) * size[0] * size[1] * len(mode), path)
    labels, test_labels, classes = encode_labels(
        np.array([name for _, name in train]), np.array([name for _, name in test]) if test else None, str(path)
    )
    own = None if test_labels is None else (_decode(test, mode, size), test_labels)
    return RawData(_decode(train, mode, size), labels, classes, 1 / 255, test=own)


def read_images(paths: list[Path], channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode images without classes to (n, channels, height, width).

    Args:
        paths: at least one.
        channels: 1 for grey, 3 for RGB, 4 with transparency.
        size: width and height.

    Raises:
        InputError: a file that is not an image, is too large or has more than 8 bits; another number of channels.
    """
    if channels not in MODES:
        raise InputError(f"{paths[0]}: images have 1, 3 or 4 channels; the model takes {channels}")
    within_limit(len(paths) * size[0] * size[1] * channels, paths[0].parent)
    _inspect(paths)
    return _decode([(path, "") for path in paths], MODES[channels], size)


def _find_images(root: Path) -> tuple[list[Example], list[Example]]:
    parts = {entry.name.lower(): entry for entry in _entries(root, root) if entry.is_dir()}
    known = {*TRAIN_NAMES, *VALIDATION_NAMES, *TEST_NAMES}
    if not parts or not set(parts) <= known or not set(parts) & set(TRAIN_NAMES):
        return _class_images(root, root), []
    train, validation, test = (
        [example for name in names if name in parts for example in _class_images(root, parts[name])]
        for names in (TRAIN_NAMES, VALIDATION_NAMES, TEST_NAMES)
    )
    return (train + validation, test) if test else (train, validation)


def _class_images(root: Path, folder: Path) -> list[Example]:
    examples: list[Example] = []
    for entry in _entries(root, folder):
        if not entry.is_dir():
            if entry.suffix.lower() in SUFFIXES:
                raise InputError(f"{entry}: an image outside of any class; put it into the folder of its class")
            continue
        images = _entries(root, entry)
        for image in images:
            if image.is_dir() or image.suffix.lower() not in SUFFIXES:
                raise InputError(f"{image}: a class folder holds images alone ({', '.join(SUFFIXES)})")
            if not stat.S_ISREG(image.stat().st_mode):
                raise InputError(f"{image}: not a regular file")
        if not images:
            raise InputError(f"{entry}: a class without images; add some or remove the folder")
        examples += [(image, entry.name) for image in images]
    if not examples:
        raise InputError(f"{folder}: no class folders; expected {folder.name}/<class>/<image>.png")
    return examples


def _entries(root: Path, folder: Path) -> list[Path]:
    """By name, without hidden files; refuses what leads out of the root."""
    try:
        entries = sorted(
            entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name.lower() not in IGNORED
        )
        for entry in entries:
            if entry.is_symlink() and not entry.resolve(strict=True).is_relative_to(root.resolve()):
                raise InputError(f"{entry}: a link that leads out of {root}; copy the file instead")
    except (OSError, RuntimeError) as error:
        raise InputError(f"{folder}: cannot list: {getattr(error, 'strerror', None) or error}") from None
    return entries


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise InputError(f"{path}: more than {LARGEST_PIXELS:,} pixels") from None
        except Exception:  # Pillow's parsers raise whatever a malformed file trips over
            raise InputError(f"{path}: not a readable {', '.join(FORMATS)} image") from None
    if image.width * image.height > LARGEST_PIXELS:
        image.close()
        raise InputError(f"{path}: {image.width} x {image.height} is more than {LARGEST_PIXELS:,} pixels")
    return image


def _upright(path: Path, image: Image.Image) -> Image.Image:
    """Decoded, and turned as its EXIF tag says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except Exception:  # as above
            raise InputError(f"{path}: a damaged image") from None


def _inspect(paths: list[Path]) -> tuple[bool, tuple[int, int]]:
    """From the headers: whether all are grey; and the upright size (width, height) of the first."""
    grey, first = True, (0, 0)
    for index, path in enumerate(paths):
        with _open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path}: {image.mode} pixels have more than 8 bits; convert the image to 8 bits")
            grey &= image.mode in ("1", "L", "LA")
            if index == 0:
                first = _upright(path, image).size
    return grey, first


def _decode(examples: list[Example], mode: Mode, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Images (n, channels, height, width), turned upright as their EXIF tag says."""
    channels = len(mode)
    decoded = np.empty((len(examples), channels, size[1], size[0]), np.uint8)
    for row, (path, _) in enumerate(examples):
        with _open(path) as image:
            upright = _upright(path, image).convert(mode)
            fitted = upright if upright.size == size else upright.resize(size, Image.Resampling.BILINEAR)
        decoded[row] = np.asarray(fitted).reshape(size[1], size[0], channels).transpose(2, 0, 1)
    return decoded
