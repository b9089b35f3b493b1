"""Tables from csv and parquet: numeric feature columns and one label column."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlites.data.raw import LONGEST_NAME, RawData, encode_labels, to_table, within_limit
from mlites.errors import InputError
from mlites.recipe import Data


def read_csv(path: Path | None, options: Data) -> RawData:
    """Read comma-separated UTF-8 text with a header line; an empty field is a null.

    Raises:
        InputError: ragged rows, a feature that is not a number, no or fractional labels, an unnamed column.
    """
    import pyarrow as pa
    from pyarrow import csv

    assert path is not None
    _check_file(path)
    names: list[str] = []
    in_order = csv.ReadOptions(use_threads=False)  # several threads could not number the row of a fault
    try:
        with pa.OSFile(str(path)) as file, csv.open_csv(file, read_options=in_order) as head:
            names = head.schema.names
        _check_names(names, options.label, path)
        types = {name: pa.string() if name == options.label else pa.float64() for name in names}
        convert = csv.ConvertOptions(column_types=types)  # inferred types would follow the first megabyte alone
        with pa.OSFile(str(path)) as file:  # a path would be unpacked if it ended in .gz
            table = csv.read_csv(file, read_options=in_order, convert_options=convert)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_explain_csv(str(error), names)}") from None
    return _to_raw(path, options.label, [table], text_labels=True)


def read_features(path: Path, label: str | None) -> NDArray[np.float32]:
    """Feature columns (n, features) of a csv or parquet table, in the order of the file.

    Args:
        path: ends in .csv or .parquet.
        label: column that is no feature, if there is one.

    Raises:
        InputError: it cannot be read, has no such column, or one that does not hold numbers.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    _check_file(path)
    names: list[str] = []
    try:
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path)
            names = table.schema.names
        else:
            in_order = csv.ReadOptions(use_threads=False)
            with pa.OSFile(str(path)) as file, csv.open_csv(file, read_options=in_order) as head:
                names = head.schema.names
            types = {name: pa.string() if name == label else pa.float64() for name in names}
            with pa.OSFile(str(path)) as file:
                convert = csv.ConvertOptions(column_types=types)
                table = csv.read_csv(file, read_options=in_order, convert_options=convert)
        _check_names(names, label or names[0], path)
        features = [name for name in names if name != label]
        for name in features:
            _check_type(table.schema.field(name), "", path)
        if not table.num_rows:
            raise InputError(f"{path}: a header but no rows")
        columns = [table.column(name).cast(pa.float64(), safe=False).to_numpy() for name in features]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_explain_csv(str(error), names)}") from None
    return to_table(np.stack(columns, axis=1), str(path))


def read_parquet(path: Path | None, options: Data) -> RawData:
    """Read one parquet file whose feature columns are numbers or booleans.

    Raises:
        InputError: not parquet, other column types, sizes beyond the limit.
    """
    import pyarrow as pa
    from pyarrow import parquet

    assert path is not None
    _check_file(path)
    try:
        schema = parquet.read_schema(path)
        _check_names(schema.names, options.label, path)
        for field in schema:
            _check_type(field, options.label, path)
        with parquet.ParquetFile(path, read_dictionary=[options.label]) as file:  # a text repeated is stored once
            within_limit(file.metadata.num_rows * len(schema) * 8, path)
            batches = []
            size = 0
            for batch in file.iter_batches():
                size += batch.nbytes  # what is really there, whatever the metadata say
                within_limit(size, path)
                batch.validate(full=True)  # indices and UTF-8, which a damaged file may have wrong
                batches.append(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file: {_first_line(str(error))}") from None
    return _to_raw(path, options.label, batches, text_labels=False)


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from None
    if not path.is_file():
        raise InputError(f"{path}: a table is one file, this is a folder")
    if size == 0:
        raise InputError(f"{path}: the file is empty")
    within_limit(size, path)


def _check_names(names: list[str], label: str, path: Path) -> None:
    for index, name in enumerate(names):
        if not name.strip():
            raise InputError(f"{path}: column {index + 1} has no name (a saved row index?); name it or remove it")
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"{path}: column {index + 1}: a name must be at most {LONGEST_NAME} printable characters, "
                f"got {name[:40]!a}"
            )
        if name in names[:index]:
            raise InputError(f"{path}: column {name!r} is there twice")
    if label not in names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(f"{path}: no label column {label!r}; set data.label to one of: {shown}")
    if len(names) < 2:
        raise InputError(f"{path}: there is no feature column beside the label {label!r}")


def _check_type(field: Any, label: str, path: Path) -> None:
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    text = types.is_string(kind) or types.is_large_string(kind)
    if field.name == label:
        if not (text or types.is_integer(kind) or types.is_boolean(kind)):
            raise InputError(f"{path}: label column {label!r} must hold whole numbers or strings, got {field.type}")
    elif kind is not field.type or not (
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    ):
        raise InputError(
            f"{path}: column {field.name!r} holds {field.type}; features must be numbers: encode it or remove it"
        )


def _to_raw(path: Path, label: str, parts: list[Any], *, text_labels: bool) -> RawData:
    """Features to float32 piece by piece, labels to classes."""
    import pyarrow as pa

    if sum(part.num_rows for part in parts) == 0:
        raise InputError(f"{path}: a header but no rows")
    columns = tuple(name for name in parts[0].schema.names if name != label)
    features: list[NDArray[np.float32]] = []
    labels: list[Any] = []
    for part in parts:
        numbers = [part.column(name).cast(pa.float64(), safe=False) for name in columns]
        stacked = np.stack([column.to_numpy(zero_copy_only=False) for column in numbers], axis=1)
        features.append(to_table(stacked, str(path)))
        labels += part.column(label).to_pylist()
    nulls = sum(value is None for value in labels)
    if nulls:
        raise InputError(f"{path}: label column {label!r} is empty in {nulls:,} rows; every row needs a label")
    place = f"{path}: label column {label!r}"
    values = _text_to_labels(labels, place) if text_labels else np.array(labels)
    encoded, _, classes = encode_labels(values, None, place)
    return RawData(np.concatenate(features), encoded, classes, 1.0, columns)


def _text_to_labels(texts: list[str], place: str) -> NDArray[Any]:
    """Whole numbers if all are, so that 10 sorts after 9; else names."""
    distinct = set(texts)
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in distinct):
        return np.array([int(text) for text in texts], np.int64)
    fractions = sorted(text for text in distinct if not re.fullmatch(r"[+-]?\d+", text))
    if fractions and all(_is_number(text) for text in distinct):
        raise InputError(f"{place}: labels must be whole numbers or names, got {fractions[0][:40]!r}")
    return np.array(texts)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*|[+-]?(nan|inf)", text) is not None


def _explain_csv(message: str, names: list[str]) -> str:
    ragged = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", message)
    if ragged:
        row = f"row {ragged[1]}" if ragged[1] else "a row"
        return f"{row} has {ragged[3]} columns, expected {ragged[2]}"
    value = re.search(r"In CSV column #(\d+): .*?invalid value '(.*)'", message, re.DOTALL)
    if value and int(value[1]) < len(names):
        column = names[int(value[1])]
        return f"column {column!r} holds {value[2][:40]!r}; features must be numbers: encode it or remove it"
    return f"not a readable csv file: {_first_line(message)}"


def _first_line(message: str) -> str:
    line = (message.splitlines() or ["no reason given"])[0][:200].rstrip(".")
    return "".join(letter if letter.isprintable() else "?" for letter in line)
