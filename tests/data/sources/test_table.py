"""Tables: numbers and a label column are read from csv and parquet, everything else is named and refused."""

import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlites.data import raw as limits
from mlites.data.raw import RawData
from mlites.data.sources.table import read_csv, read_parquet
from mlites.recipe import Data

Refusal = Callable[..., str]
CSV, PARQUET = Data(source="csv", path="anywhere"), Data(source="parquet", path="anywhere")


def _csv(folder: Path, text: str | bytes) -> Path:
    (folder / "t.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / "t.csv"


def _parquet(folder: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


def test_csv_features_keep_their_order_without_the_label(tmp_path: Path) -> None:
    raw = read_csv(_csv(tmp_path, "b,label,a\n1,x,2.5\n-3e2,y,0\n,x,NaN\n"), CSV)
    assert raw.columns == ("b", "a") and raw.classes == ("x", "y") and raw.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(raw.inputs, np.array([[1, 2.5], [-300, 0], [np.nan, np.nan]], np.float32))
    assert raw.inputs.dtype == np.float32 and raw.scale == 1.0 and raw.test is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["01", "1", "2"], ("01", "1", "2")),
        (["NA", "nan", "ok"], ("NA", "nan", "ok")),
        (["true", "false", "true"], ("false", "true")),
    ],
)
def test_csv_labels_sort_as_numbers_only_if_all_are(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...]
) -> None:
    raw = read_csv(_csv(tmp_path, "a,label\n" + "".join(f"1,{label}\n" for label in labels)), CSV)
    assert raw.classes == classes
    assert [raw.classes[label] for label in raw.labels] == labels


def test_the_label_column_can_have_any_name(tmp_path: Path) -> None:
    options = Data(source="csv", path="anywhere", label="species")
    assert read_csv(_csv(tmp_path, "a,species\n1,x\n2,y\n"), options).columns == ("a",)


def test_a_column_may_turn_from_whole_numbers_to_fractions_late(tmp_path: Path) -> None:
    """Types inferred from the first megabyte would fail here."""
    text = "a,label\n" + "1,x\n" * 400_000 + "0.5,y\n"
    assert read_csv(_csv(tmp_path, text), CSV).inputs[-1, 0] == 0.5


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "the file is empty"),
        ("a,label\n", "a header but no rows"),
        ("a,b\n1,2\n", "no label column 'label'; set data.label to one of: a, b"),
        ("a;label\n1;2\n", "no label column"),
        ("label\nx\n", "no feature column"),
        ("a,label\n1,x\n2\n", "row 3 has 1 columns, expected 2"),
        ("a,label\n1,x\n2,y,3\n", "row 3 has 3 columns, expected 2"),
        ("a,colour,label\n1,2,x\n1,red,y\n", "column 'colour' holds 'red'; features must be numbers"),
        ("a,label\ntrue,x\n2,y\n", "column 'a' holds 'true'"),
        ("a,label\n1,0.5\n2,1.5\n", "labels must be whole numbers or names, got '0.5'"),
        ("a,label\n1,0\n2,1.0\n", "labels must be whole numbers or names, got '1.0'"),
        ("a,label\n1,\n2,x\n", "class name ''"),
        ("a,label\n1,x\n2,x\n", "at least 2 classes, got only 'x'"),
        ("a,a,label\n1,2,x\n", "column 'a' is there twice"),
        (",a,label\n0,1,x\n", "column 1 has no name (a saved row index?)"),
        (b"a,label\n\xff\xfe,x\n", "column 'a' holds"),
        (b"a,label\n1,\xff\xfe\n2,x\n", "not a readable csv file"),
        (b"\xff\xfe,label\n1,x\n2,y\n", "not a readable csv file"),
        (b"\x00\x01\x02,label\n1,2\n", "printable"),
        ("a" * 300 + ",label\n1,2\n", "at most 200 printable"),
    ],
)
def test_a_csv_that_is_no_table_is_refused(tmp_path: Path, text: str | bytes, rule: str, refusal: Refusal) -> None:
    path = _csv(tmp_path, text)
    message = refusal(read_csv, path, CSV)
    assert rule in message and str(path) in message


def test_a_packed_csv_is_not_unpacked_by_its_name(tmp_path: Path, refusal: Refusal) -> None:
    import gzip

    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,label\n1,x\n2,y\n"))
    assert str(path) in refusal(read_csv, path, CSV)


@pytest.mark.parametrize("reader", [read_csv, read_parquet])
def test_a_missing_file_a_folder_and_a_giant_are_refused(
    tmp_path: Path, reader: Any, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    assert "No such file" in refusal(reader, tmp_path / "none", CSV)
    assert "this is a folder" in refusal(reader, tmp_path, CSV)
    monkeypatch.setattr(limits, "LARGEST_BYTES", 5)
    assert "the limit is 5" in refusal(reader, _csv(tmp_path, "a,label\n1,x\n"), CSV)


def test_every_number_type_of_parquet_is_read(tmp_path: Path) -> None:
    columns = {
        "i": pa.array([1, 2, None], pa.int64()),
        "u": pa.array([1, 2, 3], pa.uint8()),
        "f": pa.array([0.5, float("nan"), 1.5], pa.float32()),
        "h": pa.array(np.array([0.5, 1, 2], np.float16)),
        "b": pa.array([True, False, True]),
        "d": pa.array([Decimal("1.25"), Decimal("2.50"), Decimal("-1.00")]),
        "big": pa.array([2**60, 1, 0], pa.int64()),
    }
    raw = read_parquet(_parquet(tmp_path, **columns, label=["x", "y", "x"]), PARQUET)
    expected = [[1, 1, 0.5, 0.5, 1, 1.25, 2.0**60], [2, 2, np.nan, 1, 0, 2.5, 1], [np.nan, 3, 1.5, 2, 1, -1, 0]]
    np.testing.assert_array_equal(raw.inputs, np.array(expected, np.float32))
    assert raw.columns == tuple(columns) and raw.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array([3, 10, 3]), ("3", "10")),
        (pa.array([True, False, True]), ("false", "true")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b")),
        (pa.array(["b", "a", "b"], pa.large_string()), ("a", "b")),
    ],
)
def test_parquet_labels_of_every_kind_are_read(tmp_path: Path, labels: Any, classes: tuple[str, ...]) -> None:
    assert read_parquet(_parquet(tmp_path, a=[1, 2, 3], label=labels), PARQUET).classes == classes


def test_csv_and_parquet_of_the_same_table_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = {"a": rng.normal(size=50), "b": rng.integers(0, 9, 50), "label": rng.integers(0, 12, 50)}
    rows = "".join(f"{a!r},{b},{y}\n" for a, b, y in zip(*(table[name].tolist() for name in table), strict=True))
    one = read_csv(_csv(tmp_path, "a,b,label\n" + rows), CSV)
    two = read_parquet(_parquet(tmp_path, **table), PARQUET)
    assert np.array_equal(one.inputs, two.inputs) and np.array_equal(one.labels, two.labels)
    assert one.classes == two.classes and isinstance(two, RawData)


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"a": ["red", "blue"], "label": [0, 1]}, "column 'a' holds string; features must be numbers"),
        ({"a": pa.array(["r", "b"]).dictionary_encode(), "label": [0, 1]}, "column 'a' holds dictionary"),
        ({"a": pa.array([1, 2], pa.timestamp("s")), "label": [0, 1]}, "column 'a' holds timestamp"),
        ({"a": [[1.0], [2.0]], "label": [0, 1]}, "column 'a' holds list"),
        ({"a": [1, 2], "label": [0.0, 1.0]}, "label column 'label' must hold whole numbers or strings, got double"),
        ({"a": [1, 2, 3], "label": ["x", None, "y"]}, "label column 'label' is empty in 1 rows"),
        ({"a": [1, 2], "b": [1, 2]}, "no label column 'label'"),
        ({"a": pa.array([], pa.int64()), "label": pa.array([], pa.int64())}, "a header but no rows"),
    ],
)
def test_parquet_columns_that_do_not_fit_are_refused(
    tmp_path: Path, columns: dict[str, Any], rule: str, refusal: Refusal
) -> None:
    path = _parquet(tmp_path, **columns)
    message = refusal(read_parquet, path, PARQUET)
    assert rule in message and str(path) in message


def test_damaged_parquet_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"a": np.arange(5000.0), "label": np.arange(5000) % 2}), buffer)
    whole = buffer.getvalue()
    for content in (b"PAR1", b"a,label\n1,2\n", whole[:-20], whole[:1000] + b"\xff" * 2000 + whole[3000:]):
        (tmp_path / "t.parquet").write_bytes(content)
        message = refusal(read_parquet, tmp_path / "t.parquet", PARQUET)
        assert str(tmp_path / "t.parquet") in message


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    broken = pa.array([b"\xff\xfe", b"ok", b"ok"], pa.binary()).view(pa.string())
    path = _parquet(tmp_path, a=[1, 2, 3], label=broken)
    assert "not a readable parquet file" in refusal(read_parquet, path, PARQUET)


def test_a_signalling_nan_is_a_null_like_any_other(tmp_path: Path) -> None:
    numbers = np.array([0x7FF0000000000001, 0], np.uint64).view(np.float64)
    raw = read_parquet(_parquet(tmp_path, a=numbers, label=[0, 1]), PARQUET)
    assert np.isnan(raw.inputs[:, 0]).tolist() == [True, False]


def test_a_parquet_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    path = _parquet(tmp_path, a=np.zeros(1_000_000), label=np.zeros(1_000_000, np.int64))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(limits, "LARGEST_BYTES", 1_000_000)
    assert "16,000,000 bytes when unpacked; the limit is 1,000,000" in refusal(read_parquet, path, PARQUET)
