"""Preparation end to end: real files in, a validated dataset, its page and its document out, or one clear refusal."""

import gzip
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlites.data.dataset import Dataset
from mlites.data.prepare import fit_preprocessing, prepare, source_digest
from mlites.data.profile import read_profile
from mlites.files import digest_folder
from mlites.recipe import Data

Refusal = Callable[..., str]
DIGITS = Data(source="digits")


def _prepare(data: Data, out: Path, *, task: str | None = None, seed: int = 0, reference: Path | None = None) -> Any:
    path = Path(data.path) if data.path else None
    return prepare(data, task, seed, path, out / "dataset", out / "quality.html", reference)


def _npz(path: Path, x: Any, y: Any, **more: Any) -> Data:
    np.savez(path, x=x, y=y, **more)
    return Data(source="npz", path=str(path))


def _blobs(rows: int = 300, seed: int = 0, shift: float = 0.0, features: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    return rng.normal(size=(rows, features)) + y[:, None] + shift, y


def _check(document: dict[str, Any], name: str, column: str | None = None) -> dict[str, Any]:
    found = [one for one in document["checks"] if one["name"] == name and column in (None, one["column"])]
    assert len(found) == 1, found
    return dict(found[0])


def _failed(html: Path) -> list[str]:
    """Names of the failed critical checks on a page."""
    return re.findall(r'tag bad">critical</span></td><td[^>]*>([^<]*)</td>', html.read_text())


class _Page(HTMLParser):
    """Collects what a browser would fetch, and whether every tag is closed."""

    VOID = ("meta", "img", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "link", "iframe", "object", "base")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_digits_become_a_dataset_that_loads(tmp_path: Path) -> None:
    document = _prepare(DIGITS, tmp_path)
    dataset = Dataset.load(tmp_path / "dataset")
    assert document["digest"] == dataset.digest and document["success"] is True
    assert document["rows"] == dataset.rows and sum(dataset.rows.values()) == 1797
    assert (dataset.task, dataset.source, dataset.input_shape) == ("image-classification", "digits", (1, 8, 8))
    assert dataset.preprocessing.scale == 1 / 16
    whole = sorted(image.tobytes() for image in load_digits().images.astype(np.uint8))
    assert sorted(image.tobytes() for name in dataset.rows for image in dataset.split(name)[0]) == whole
    counts = {name: np.bincount(dataset.split(name)[1], minlength=10).tolist() for name in dataset.rows}
    assert {name: list(classes.values()) for name, classes in document["class_counts"].items()} == counts
    json.dumps(document, allow_nan=False)


def test_training_inputs_have_mean_0_and_deviation_1_and_the_others_do_not_count(tmp_path: Path) -> None:
    _prepare(DIGITS, tmp_path)
    dataset = Dataset.load(tmp_path / "dataset")
    arrays = dataset.arrays("train")[0]
    assert abs(arrays.mean()) < 1e-5 and abs(arrays.std() - 1) < 1e-5
    assert abs(dataset.arrays("test")[0].mean()) > 1e-5


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (_prepare(DIGITS, tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert one == two and one["digest"] != other["digest"]
    assert digest_folder(tmp_path / "a" / "dataset") == digest_folder(tmp_path / "b" / "dataset")
    assert (tmp_path / "a" / "quality.html").read_bytes() == (tmp_path / "b" / "quality.html").read_bytes()


def test_the_order_of_rows_does_not_change_the_digest(tmp_path: Path) -> None:
    x, y = _blobs()
    order = np.random.default_rng(5).permutation(len(y))
    one = _prepare(_npz(tmp_path / "a.npz", x, y), tmp_path / "a")
    two = _prepare(_npz(tmp_path / "b.npz", x[order], y[order]), tmp_path / "b")
    assert one["digest"] == two["digest"]


def test_names_and_order_of_image_files_do_not_change_the_digest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 5, 5), dtype=np.uint8)
    for folder, indices in (("a", range(40)), ("b", reversed(range(40)))):
        for place, index in enumerate(indices):
            path = tmp_path / folder / f"c{index % 2}" / f"{place:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(path)
    digests = {
        _prepare(Data(source="imagefolder", path=str(tmp_path / name)), tmp_path / f"out-{name}")["digest"]
        for name in "ab"
    }
    assert len(digests) == 1


def test_a_csv_becomes_a_tabular_dataset(tmp_path: Path) -> None:
    x, y = _blobs()
    rows = "".join(f"{a:.6f},{b:.6f},{c:.6f},class {label}\n" for (a, b, c), label in zip(x, y, strict=True))
    (tmp_path / "t.csv").write_text("a,b,c,kind\n" + rows)
    document = _prepare(Data(source="csv", path=str(tmp_path / "t.csv"), label="kind"), tmp_path)
    dataset = Dataset.load(tmp_path / "dataset")
    assert dataset.task == "tabular-classification" and dataset.input_shape == (3,)
    assert dataset.classes == ("class 0", "class 1", "class 2")
    np.testing.assert_allclose(dataset.arrays("train")[0].std(axis=0), 1, atol=1e-4)
    assert _check(document, "no nulls", "b")["success"] and _check(document, "range", "b")["success"]


def test_own_test_rows_stay_the_test_split_and_leave_train(tmp_path: Path) -> None:
    def idx(array: np.ndarray) -> bytes:
        return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()

    images = np.random.default_rng(0).integers(0, 256, (120, 4, 4))
    test = np.concatenate([images[:3], np.random.default_rng(1).integers(0, 256, (27, 4, 4))])
    for prefix, part in (("train", images), ("t10k", test)):
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(part)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(len(part)) % 3)))
    document = _prepare(Data(source="idx", path=str(tmp_path)), tmp_path / "out")
    assert document["duplicates_removed_across_splits"] == 3
    assert document["rows"]["test"] == 30 and document["rows"]["train"] + document["rows"]["validation"] == 117
    assert not _check(document, "source keeps its test set apart")["success"]
    assert _check(document, "no leak between splits")["success"] and document["success"]


def test_contradictory_and_repeated_rows_are_reported(tmp_path: Path) -> None:
    x, y = _blobs()
    x = np.concatenate([x, x[:60]])
    y = np.concatenate([y, (y[:60] + 1) % 3])
    document = _prepare(_npz(tmp_path / "d.npz", x, y), tmp_path)
    assert document["duplicate_rows"] == 60 and document["contradictory_rows"] == 120
    assert not _check(document, "equal inputs have equal labels")["success"]
    assert not _check(document, "few duplicates")["success"]
    assert "warnings are worth a look" in (tmp_path / "quality.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "failed", "message"),
    [
        (np.nan, ["no nulls"], r"'no nulls' \(x1\) failed: observed 1 of 300 rows break it, such as nan"),
        (np.inf, ["range"], r"'range' \(x1\) failed: observed 1 of 300 rows break it, such as inf"),
        (-1e31, ["range"], r"'range' \(x1\) failed: .*such as -1e\+31, expected -1e\+30 to 1e\+30"),
        (1e300, ["range"], r"'range' \(x1\) failed: .*such as inf"),
    ],
)
def test_a_broken_value_stops_the_run_after_the_page_is_written(
    tmp_path: Path, spoil: float, failed: list[str], message: str, refusal: Refusal
) -> None:
    x, y = _blobs()
    x[7, 1] = spoil
    text = refusal(_prepare, _npz(tmp_path / "d.npz", x, y), tmp_path)
    assert re.search(message, text) and str(tmp_path / "d.npz") in text and str(tmp_path / "quality.html") in text
    assert _failed(tmp_path / "quality.html") == failed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz", "quality.html"]


@pytest.mark.parametrize(("spoil", "column"), [(np.nan, "missing values"), (np.inf, "infinite values")])
def test_a_wide_table_is_validated_by_row(tmp_path: Path, spoil: float, column: str, refusal: Refusal) -> None:
    x, y = _blobs(features=100)
    document = _prepare(_npz(tmp_path / "ok.npz", x, y), tmp_path)
    assert document["success"] and len(document["checks"]) < 40
    x[7, 50] = spoil
    message = refusal(_prepare, _npz(tmp_path / "d.npz", x, y), tmp_path)
    assert f"'range' ({column})" in message


def test_a_constant_column_is_a_warning_and_does_not_blow_up(tmp_path: Path) -> None:
    x, y = _blobs()
    x[:, 2] = 5.5
    document = _prepare(_npz(tmp_path / "d.npz", x, y), tmp_path)
    assert not _check(document, "not constant", "x2")["success"] and _check(document, "not constant", "x1")["success"]
    assert (Dataset.load(tmp_path / "dataset").arrays("test")[0][:, 2] == 0).all()


def test_blank_images_and_a_rare_class_are_warnings(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (200, 5, 5), dtype=np.uint8)
    x[:20] = np.arange(20)[:, None, None]
    y = np.r_[np.zeros(190, int), np.ones(10, int)]
    document = _prepare(_npz(tmp_path / "d.npz", x, y), tmp_path)
    assert not _check(document, "images are not blank")["success"]
    assert not _check(document, "class balance")["success"] and document["success"]


def test_the_profile_of_a_dataset_accepts_data_of_the_same_kind(tmp_path: Path) -> None:
    _prepare(_npz(tmp_path / "a.npz", *_blobs(600)), tmp_path / "a")
    reference = tmp_path / "a" / "dataset" / "profile.json"
    assert read_profile(reference).rows == 600
    document = _prepare(_npz(tmp_path / "b.npz", *_blobs(600, seed=9)), tmp_path / "b", reference=reference)
    assert document["success"] and all(one["success"] for one in document["checks"])
    assert set(document["drift"]) == {"x0", "x1", "x2", "class"}
    assert "PSI" in (tmp_path / "b" / "quality.html").read_text()


def test_drifted_data_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    _prepare(_npz(tmp_path / "a.npz", *_blobs(600)), tmp_path / "a")
    reference = tmp_path / "a" / "dataset" / "profile.json"
    data = _npz(tmp_path / "b.npz", *_blobs(600, seed=9, shift=1.0))
    message = refusal(_prepare, data, tmp_path / "b", reference=reference)
    assert "'no large drift' (drift of x0) failed" in message and "PSI at most 0.25" in message
    assert _failed(tmp_path / "b" / "quality.html") == ["no large drift"] * 3
    assert not (tmp_path / "b" / "dataset").exists()


def test_darker_images_are_drift(tmp_path: Path, refusal: Refusal) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (300, 6, 6), dtype=np.uint8), np.arange(300) % 2
    _prepare(_npz(tmp_path / "a.npz", x, y), tmp_path / "a")
    reference = tmp_path / "a" / "dataset" / "profile.json"
    message = refusal(_prepare, _npz(tmp_path / "b.npz", x // 2, y), tmp_path / "b", reference=reference)
    assert "'no large drift' (drift of brightest) failed" in message and "4 more critical checks failed" in message


@pytest.mark.parametrize(
    ("x", "y", "rule"),
    [
        (_blobs(features=4)[0], _blobs()[1], "'columns' failed: observed"),
        (_blobs()[0], _blobs()[1] + 1, "'label set' (class) failed: observed 3, no 0, expected exactly the 3 classes"),
    ],
)
def test_another_schema_than_the_references_is_refused(
    tmp_path: Path, x: Any, y: Any, rule: str, refusal: Refusal
) -> None:
    _prepare(_npz(tmp_path / "a.npz", *_blobs()), tmp_path / "a")
    reference = tmp_path / "a" / "dataset" / "profile.json"
    assert rule in refusal(_prepare, _npz(tmp_path / "b.npz", x, y), tmp_path / "b", reference=reference)


def test_images_of_another_size_than_the_references_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    rng, y = np.random.default_rng(0), np.arange(200) % 2
    _prepare(_npz(tmp_path / "a.npz", rng.integers(0, 256, (200, 6, 6)), y), tmp_path / "a")
    data = _npz(tmp_path / "b.npz", rng.integers(0, 256, (200, 7, 7)), y)
    message = refusal(_prepare, data, tmp_path / "b", reference=tmp_path / "a" / "dataset" / "profile.json")
    assert "'input shape' (input shape) failed: observed [1, 7, 7], expected the reference's [1, 6, 6]" in message


def test_the_task_must_fit_what_the_source_holds(tmp_path: Path, refusal: Refusal) -> None:
    table = _npz(tmp_path / "d.npz", *_blobs())
    assert "holds a table" in refusal(_prepare, table, tmp_path, task="image-classification")
    assert "holds images" in refusal(_prepare, DIGITS, tmp_path, task="tabular-classification")
    assert _prepare(table, tmp_path, task="tabular-classification")["task"] == "tabular-classification"


def test_limit_keeps_that_many_rows(tmp_path: Path) -> None:
    document = _prepare(Data(source="digits", limit=200), tmp_path)
    assert sum(document["rows"].values()) == 200


def test_an_earlier_dataset_is_replaced_only_by_a_good_one(tmp_path: Path, refusal: Refusal) -> None:
    x, y = _blobs()
    first = _prepare(_npz(tmp_path / "d.npz", x, y), tmp_path)
    x[0, 0] = np.nan
    refusal(_prepare, _npz(tmp_path / "d.npz", x, y), tmp_path)
    assert Dataset.load(tmp_path / "dataset").digest == first["digest"]
    second = _prepare(_npz(tmp_path / "d.npz", x[1:], y[1:]), tmp_path)
    assert Dataset.load(tmp_path / "dataset").digest == second["digest"] != first["digest"]


@pytest.mark.parametrize("source", ["idx", "npz", "csv", "parquet", "imagefolder"])
def test_a_missing_source_is_refused_by_name(tmp_path: Path, source: Any, refusal: Refusal) -> None:
    data = Data(source=source, path=str(tmp_path / "none"))
    for call in (lambda: _prepare(data, tmp_path), lambda: source_digest(data)):
        message = refusal(call)
        assert str(tmp_path / "none") in message and "No such file" in message


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    data = Data(source="npz", path=str(tmp_path / "file" / "d.npz"))
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(source_digest, data)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, refusal: Refusal) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    data = Data(source="csv", path=str(tmp_path / "pipe.csv"))
    assert "neither a file nor a folder" in refusal(source_digest, data)
    assert "neither a file nor a folder" in refusal(_prepare, data, tmp_path)


def test_messages_and_page_name_the_users_address_and_not_the_local_copy(tmp_path: Path, refusal: Refusal) -> None:
    x, y = _blobs()
    data = Data(source="npz", path="s3://bucket/d.npz")

    def call(local: Path) -> Any:
        return prepare(data, None, 0, local, tmp_path / "dataset", tmp_path / "quality.html", None)

    _npz(tmp_path / "copy.npz", x, y[:5])
    assert refusal(call, tmp_path / "copy.npz").startswith("s3://bucket/d.npz: 300 inputs but 5 labels")
    x[0, 0] = np.nan
    _npz(tmp_path / "copy.npz", x, y)
    assert refusal(call, tmp_path / "copy.npz").startswith("s3://bucket/d.npz: critical check")
    page = (tmp_path / "quality.html").read_text()
    assert "s3://bucket/d.npz" in page and "copy.npz" not in page


def test_the_source_digest_follows_content_and_names_alone(tmp_path: Path) -> None:
    file = Data(source="npz", path=str(tmp_path / "d.npz"))
    (tmp_path / "d.npz").write_bytes(b"one")
    first = source_digest(file)
    os.utime(tmp_path / "d.npz", (1, 1))
    assert source_digest(file) == first
    (tmp_path / "d.npz").write_bytes(b"two")
    assert source_digest(file) != first
    folder = Data(source="idx", path=str(tmp_path))
    first = source_digest(folder)
    (tmp_path / "d.npz").rename(tmp_path / "e.npz")
    assert source_digest(folder) != first
    assert source_digest(DIGITS) == source_digest(DIGITS) and len(source_digest(DIGITS)) == 64


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    _prepare(DIGITS, tmp_path)
    text = (tmp_path / "quality.html").read_text()
    page = _Page(text)
    assert page.open == [] and page.fetched and all(one.startswith("data:image/png;base64,") for one in page.fetched)
    assert "url(" not in text and "@import" not in text and len(text) < 300_000


def test_names_from_the_data_cannot_become_markup(tmp_path: Path) -> None:
    x, y = _blobs()
    rows = "".join(f"{a},{b},<i>{label}</i>\n" for (a, b, _), label in zip(x, y, strict=True))
    (tmp_path / "t.csv").write_text('<script>alert(1)</script>,"b""><img src=x>",label\n' + rows)
    _prepare(Data(source="csv", path=str(tmp_path / "t.csv")), tmp_path)
    page = _Page((tmp_path / "quality.html").read_text())
    assert page.open == [] and page.fetched == []


def test_a_column_may_be_called_class(tmp_path: Path) -> None:
    x, y = _blobs()
    rows = "".join(f"{a},{b},{label}\n" for (a, b, _), label in zip(x, y, strict=True))
    (tmp_path / "t.csv").write_text("class,class_,label\n" + rows)
    document = _prepare(Data(source="csv", path=str(tmp_path / "t.csv")), tmp_path)
    assert _check(document, "label set")["column"] == "class__"


def test_statistics_are_those_of_numpy_in_double_precision() -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (5000, 3, 4, 5), dtype=np.uint8)
    fitted = fit_preprocessing(inputs, 1 / 255)
    np.testing.assert_allclose(fitted.mean, (inputs / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(fitted.std, (inputs / 255).std(axis=(0, 2, 3)), rtol=1e-12)


def test_validation_talks_to_nobody_and_writes_nowhere_else(tmp_path: Path) -> None:
    """In a process of its own whose every connection fails, with a home and a temporary folder that are looked at."""
    work, home, scratch = (tmp_path / name for name in ("work", "home", "tmp"))
    for folder in (work, home, scratch):
        folder.mkdir()
    code = (
        "import socket, pathlib\n"
        "def refuse(*args): raise SystemExit('tried to connect')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from mlites.data.prepare import prepare\n"
        "from mlites.recipe import Data\n"
        "p = pathlib.Path\n"
        "prepare(Data(source='digits'), None, 0, None, p('out/dataset'), p('out/quality.html'), None)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "HOME": str(home), "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert [path.name for path in work.iterdir()] == ["out"]
    assert sorted(path.name for path in (work / "out").iterdir()) == ["dataset", "quality.html"]
    assert list(home.iterdir()) == [] and list(scratch.iterdir()) == []
