from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlites.errors import InputError
from mlites.serving.inputs import read_inputs
from mlites.serving.release import Release


def images(shape: tuple[int, ...] = (1, 2, 2), scale: float = 1 / 255) -> Release:
    return Release.model_construct(model="m", input_shape=shape, preprocessing={"scale": scale})


TABLE = Release.model_construct(model="t", input_shape=(3,), preprocessing={"scale": 1.0})


def picture(path: Path, pixels: Any, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8), mode).save(path)


def test_arrays_are_read_as_they_are_stored(tmp_path: Path) -> None:
    rows = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    np.savez(tmp_path / "a.npz", x=rows, y=[0, 1])
    np.save(tmp_path / "a.npy", rows)
    for name in ("a.npz", "a.npy"):
        found = read_inputs(tmp_path / name, images())
        assert found.rows.dtype == np.uint8 and (found.rows == rows).all() and found.names == ("0", "1")


def test_images_get_the_models_size_and_channels_and_keep_their_names(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "b" / "2.png", [[0, 255], [51, 102]])
    picture(tmp_path / "in" / "a.png", np.full((4, 6, 3), 40), "RGB")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    found = read_inputs(tmp_path / "in", images())
    assert found.names == ("a.png", "b/2.png")
    assert found.rows[0].ravel().tolist() == [40] * 4 and found.rows[1].ravel().tolist() == [0, 255, 51, 102]
    single = read_inputs(tmp_path / "in" / "a.png", images((3, 4, 6)))
    assert single.rows.shape == (1, 3, 4, 6) and single.names == ("a.png",)


def test_pixels_are_brought_to_the_scale_of_the_training_data(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", [[0, 255], [128, 16]])
    assert read_inputs(tmp_path / "a.png", images(scale=1 / 16)).rows.ravel().tolist() == [0, 16, 8, 1]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_read_with_or_without_its_label_column(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4], "kind": ["x", "y"], "c": [0.5, 0.25]})
    for name, part, label in (("with", frame, "kind"), ("without", frame.drop(columns="kind"), None)):
        path = tmp_path / f"{name}.{suffix}"
        part.to_csv(path, index=False) if suffix == "csv" else part.to_parquet(path)
        found = read_inputs(path, TABLE, label)
        assert found.rows.dtype == np.float32 and found.rows.tolist() == [[1, 3, 0.5], [2, 4, 0.25]]


@pytest.mark.parametrize(
    ("name", "content", "release", "words"),
    [
        ("a.csv", "a,b,c\n", TABLE, "a header but no rows"),
        ("a.csv", "a,b,c\n1,x,3\n", TABLE, "column 'b' holds 'x'; features must be numbers"),
        ("a.csv", "a,b,c\n1,2,3\n", images(), r"a table, but m takes images of shape \(1, 2, 2\)"),
        ("a.png", "no image", images(), "not a readable PNG"),
        ("a.png", "no image", TABLE, "images, but t takes rows of 3 numbers"),
        ("a.npy", "no array", TABLE, "not a readable npy array"),
        ("a.npz", "no archive", TABLE, "not a readable npz archive"),
        ("a.parquet", "no parquet", TABLE, "not a readable"),
        ("a.txt", "1 2 3", TABLE, r"expected a folder of images, or a file of \.npz, \.npy, \.csv, \.parquet, \.png"),
        ("empty/notes.txt", "", images(), r"no images below \(\.png"),
        ("none.csv", None, TABLE, "cannot read: No such file"),
        ("none.npz", None, TABLE, "not a readable npz archive: No such file"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, name: str, content: str | None, release: Release, words: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_inputs(path.parent if name.startswith("empty") else path, release)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_label_that_is_no_column_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(InputError, match=r"no label column 'kind'; set data\.label to one of: a, b, c"):
        read_inputs(tmp_path / "a.csv", TABLE, "kind")
