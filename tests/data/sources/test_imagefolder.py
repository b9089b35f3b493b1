"""Image folders: real encoders write them, the reader brings them to one form and trusts none of them."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlites.data import raw as limits
from mlites.data.sources import imagefolder
from mlites.data.sources.imagefolder import read
from mlites.recipe import Data

Refusal = Callable[..., str]
OPTIONS = Data(source="imagefolder", path="anywhere")


def _image(path: Path, size: tuple[int, int] = (6, 4), mode: str = "L", level: int = 100, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour: Any = level if mode in ("L", "P", "1", "I;16") else (level, 20, 30, 255)[: len(mode)]
    Image.new(mode, size, colour).save(path, **settings)


def _two_classes(root: Path, rows: int = 3, **settings: Any) -> None:
    for name, level in (("cat", 50), ("dog", 200)):
        for index in range(rows):
            _image(root / name / f"{index}.png", level=level + index, **settings)


def test_folders_are_classes_and_images_come_by_name(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    raw = read(tmp_path, OPTIONS)
    assert raw.inputs.shape == (6, 1, 4, 6) and raw.inputs.dtype == np.uint8
    assert raw.inputs[:, 0, 0, 0].tolist() == [50, 51, 52, 200, 201, 202]
    assert raw.classes == ("cat", "dog") and raw.labels.tolist() == [0, 0, 0, 1, 1, 1] and raw.test is None


def test_one_colour_image_makes_all_rgb(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    _image(tmp_path / "dog" / "9.png", mode="RGB", level=9)
    raw = read(tmp_path, OPTIONS)
    assert raw.inputs.shape == (7, 3, 4, 6)
    assert raw.inputs[0, :, 0, 0].tolist() == [50, 50, 50] and raw.inputs[6, :, 0, 0].tolist() == [9, 20, 30]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp"])
def test_every_named_format_is_read(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        _image(tmp_path / name / f"1{suffix}", mode="RGB")
    assert abs(int(read(tmp_path, OPTIONS).inputs[0, 0, 0, 0]) - 100) <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_every_mode_is_converted(tmp_path: Path, mode: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 5), (255, 255, 255)).convert(mode).save(tmp_path / name / "1.png")
    raw = read(tmp_path, OPTIONS)
    assert raw.inputs.shape[1] == (1 if mode in ("LA", "1") else 3) and (raw.inputs == 255).all()


def test_images_are_resized_to_the_option_or_the_first(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    _image(tmp_path / "dog" / "9.png", size=(17, 31))
    assert read(tmp_path, OPTIONS).inputs.shape == (7, 1, 4, 6)
    options = Data(source="imagefolder", path="anywhere", image_size=9)
    assert read(tmp_path, options).inputs.shape == (7, 1, 9, 9)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    upright = np.zeros((4, 6), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.rot90(upright)).save(tmp_path / name / "1.png", exif=exif)
    assert np.array_equal(read(tmp_path, OPTIONS).inputs[0, 0], upright)


def test_test_folders_are_the_sources_own_test_set(tmp_path: Path) -> None:
    for part, rows in (("train", 4), ("test", 2), ("val", 1)):
        _two_classes(tmp_path / part, rows)
    raw = read(tmp_path, OPTIONS)
    assert raw.test is not None and len(raw.test[1]) == 4 and len(raw.labels) == 10


def test_a_val_folder_stands_in_for_test(tmp_path: Path) -> None:
    _two_classes(tmp_path / "train", 4)
    _two_classes(tmp_path / "val", 2)
    raw = read(tmp_path, OPTIONS)
    assert raw.test is not None and len(raw.test[1]) == 4 and len(raw.labels) == 8


def test_classes_may_be_called_train_and_test_if_others_are_there(tmp_path: Path) -> None:
    for name in ("train", "test", "bus"):
        _image(tmp_path / name / "1.png")
    assert read(tmp_path, OPTIONS).classes == ("bus", "test", "train")


def test_hidden_files_and_files_beside_the_classes_do_not_count(tmp_path: Path) -> None:
    _two_classes(tmp_path)
    for name in (".DS_Store", "cat/.hidden", "cat/Thumbs.db", "README.md"):
        (tmp_path / name).write_text("?")
    assert len(read(tmp_path, OPTIONS).labels) == 6


def test_a_link_inside_the_folder_is_followed_and_one_out_of_it_refused(tmp_path: Path, refusal: Refusal) -> None:
    root = tmp_path / "root"
    _two_classes(root)
    (root / "cat" / "again.png").symlink_to(root / "cat" / "0.png")
    assert len(read(root, OPTIONS).labels) == 7
    _image(tmp_path / "secret" / "s.png")
    (root / "cat" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    assert "leads out of" in refusal(read, root, OPTIONS)
    (root / "cat" / "out.png").unlink()
    (root / "fox").symlink_to(tmp_path / "secret")
    assert "leads out of" in refusal(read, root, OPTIONS)


def test_dangling_and_endless_links_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    _two_classes(tmp_path)
    (tmp_path / "cat" / "x.png").symlink_to(tmp_path / "cat" / "none.png")
    assert "cannot list" in refusal(read, tmp_path, OPTIONS)
    (tmp_path / "cat" / "x.png").unlink()
    (tmp_path / "cat" / "x.png").symlink_to(tmp_path / "cat" / "x.png")
    assert "cannot list" in refusal(read, tmp_path, OPTIONS)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, refusal: Refusal) -> None:
    _two_classes(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert "not a regular file" in refusal(read, tmp_path, OPTIONS)


def test_what_is_no_folder_of_classes_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    assert "needs a folder" in refusal(read, tmp_path / "none", OPTIONS)
    assert "no class folders" in refusal(read, tmp_path, OPTIONS)
    _two_classes(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "a class without images" in refusal(read, tmp_path, OPTIONS)
    (tmp_path / "empty").rmdir()
    _image(tmp_path / "stray.png")
    assert "outside of any class" in refusal(read, tmp_path, OPTIONS)
    (tmp_path / "stray.png").unlink()
    (tmp_path / "cat" / "notes.txt").write_text("?")
    assert "a class folder holds images alone" in refusal(read, tmp_path, OPTIONS)
    (tmp_path / "cat" / "notes.txt").rename(tmp_path / "notes.txt")
    (tmp_path / "cat" / "inner").mkdir()
    assert "a class folder holds images alone" in refusal(read, tmp_path, OPTIONS)


def test_one_class_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    _image(tmp_path / "cat" / "1.png")
    assert "at least 2 classes, got only 'cat'" in refusal(read, tmp_path, OPTIONS)


def test_an_unknown_class_in_test_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    _two_classes(tmp_path / "train")
    _image(tmp_path / "test" / "fox" / "1.png")
    assert "test label 'fox' is out of range" in refusal(read, tmp_path, OPTIONS)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("edge", [8_100, 10_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, edge: int, refusal: Refusal) -> None:
    _two_classes(tmp_path)
    (tmp_path / "cat" / "bomb.png").write_bytes(_png_header(edge, edge))
    message = refusal(read, tmp_path, OPTIONS)
    assert "bomb.png" in message and "more than 64,000,000 pixels" in message


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 50, b"%!PS-Adobe\n", b"\xff\xd8\xff"]
)
def test_what_is_not_an_image_is_refused(tmp_path: Path, content: bytes, refusal: Refusal) -> None:
    _two_classes(tmp_path)
    (tmp_path / "cat" / "bad.png").write_bytes(content)
    message = refusal(read, tmp_path, OPTIONS)
    assert "bad.png" in message and "not a readable" in message


@pytest.mark.parametrize("place", ["0first", "last"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str, place: str, refusal: Refusal) -> None:
    _two_classes(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    bad = tmp_path / "cat" / f"{place}{suffix}"
    Image.fromarray(noise).save(bad)
    bad.write_bytes(bad.read_bytes()[:1500])
    message = refusal(read, tmp_path, OPTIONS)
    assert bad.name in message and "damaged image" in message


def test_sixteen_bit_images_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    _two_classes(tmp_path)
    _image(tmp_path / "cat" / "deep.png", mode="I;16", level=40_000)
    assert "more than 8 bits" in refusal(read, tmp_path, OPTIONS)


def test_a_folder_larger_than_the_limit_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    _two_classes(tmp_path)
    monkeypatch.setattr(limits, "LARGEST_BYTES", 6 * 4 * 6 - 1)
    monkeypatch.setattr(imagefolder, "_decode", None)
    assert "144 bytes when unpacked" in refusal(read, tmp_path, OPTIONS)
