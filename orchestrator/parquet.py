"""Typed rows to Parquet files and back; only a bucket's backend imports Arrow too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.text import first_line

TYPES = {
    "string": pa.string(),
    "strings": pa.list_(pa.string()),
    "int": pa.int64(),
    "float": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Table: TypeAlias = Any  # pa.Table, whose library has no types
Batch: TypeAlias = Any  # pa.RecordBatch
Error = pa.ArrowException

_COMPRESSED = 16  # rows; a file with at least this many is compressed


class UnreadableFile(Exception):
    """A file that is not the expected Parquet; the message is the reason."""


def to_parquet(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> bytes:
    """The Parquet file of rows with the given column types (names of `TYPES`), `facts` in its metadata."""
    return table_to_parquet(table_of(columns, rows), facts)


def table_to_parquet(table: Table, facts: Mapping[str, str]) -> bytes:
    """The Parquet file of a table, `facts` in its metadata."""
    sink = pa.BufferOutputStream()
    # Most files have one row, without repetitions: dictionaries and compression would only slow down writing.
    compression = "zstd" if len(table) >= _COMPRESSED else "none"
    stated = table.replace_schema_metadata(dict(facts))
    pq.write_table(stated, sink, compression=compression, use_dictionary=False, write_page_checksum=True)
    return bytes(sink.getvalue())


def table_from_parquet(content: bytes, columns: Mapping[str, str]) -> Table:
    """The rows of a Parquet file as a table with exactly the given columns (see `to_parquet`), null where it lacks one.

    Raises UnreadableFile for a damaged file, and if a column has another type.
    """
    with _translate_errors():
        return _read_columns(_open(pa.BufferReader(content)), columns)


def read_with_facts(content: bytes, columns: Mapping[str, str]) -> tuple[Table, dict[str, str]]:
    """The same as `table_from_parquet`, and the facts in the file's metadata. No column may be missing."""
    with _translate_errors():
        file = _open(pa.BufferReader(content))
        if missing := columns.keys() - set(file.schema_arrow.names):
            raise UnreadableFile(f"has no column {min(missing)}")
        facts = file.schema_arrow.metadata or {}
        return _read_columns(file, columns), {key.decode(): value.decode() for key, value in facts.items()}


def _read_columns(file: Any, columns: Mapping[str, str]) -> Table:
    if file.schema_arrow.equals(_make_schema(columns)):  # most are, and selecting takes as long as reading them
        found = _read_all(file).replace_schema_metadata(None)
    else:
        found = _add_missing_columns(_read_all(file, _select_columns(file, columns)), columns)
    found.validate(full=True)  # finds text that is not UTF-8, which would otherwise fail when it is displayed
    return found


def _add_missing_columns(found: Table, columns: Mapping[str, str]) -> Table:
    """The table with nulls in the columns that it lacks."""
    held = set(found.column_names)
    arrays = [
        found.column(name) if name in held else pa.nulls(found.num_rows, TYPES[kind]) for name, kind in columns.items()
    ]
    return pa.table(arrays, schema=_make_schema(columns))


def _select_columns(file: Any, columns: Mapping[str, str]) -> list[str]:
    """The given columns that a file has. Raises TypeError for a column with another type."""
    schema = file.schema_arrow
    present = [name for name in columns if name in schema.names]
    for name in present:
        if schema.field(name).type != TYPES[columns[name]]:
            raise TypeError(f"{name} is of type {schema.field(name).type}")
    return present


def _read_all(file: Any, columns: list[str] | None = None) -> Table:
    """All rows of a file. Raises ValueError if their number is not the one in its metadata."""
    table = file.read(columns=columns, use_threads=False)  # threads only help with larger files
    if table.num_rows != file.metadata.num_rows:  # the footer has no checksum, but contains this number twice
        raise ValueError(f"{table.num_rows} rows of {file.metadata.num_rows}")
    return table


def join(tables: Sequence[Table], columns: Mapping[str, str]) -> Table:
    """The rows of all tables, one after another; no rows if there are no tables."""
    # One chunk per column: a query over thousands of small chunks takes several times as long.
    return pa.concat_tables(tables).combine_chunks() if tables else _make_schema(columns).empty_table()


def rows(table: Table) -> list[dict[str, Any]]:
    """The rows of a table as Python values. Raises UnreadableFile for a time that no calendar has."""
    with _translate_errors():
        return _to_rows(table)


def _to_rows(table: Table) -> list[dict[str, Any]]:
    names, columns = table.column_names, [_to_values(column) for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _to_values(column: Any) -> list[Any]:
    """The values of a column; Arrow would convert times only after it has imported pandas, which takes 0.2 s."""
    if column.type != TYPES["timestamp"]:
        values: list[Any] = column.to_pylist()
        return values
    numbers = column.cast(pa.int64()).to_pylist()
    return [None if number is None else _EPOCH + timedelta(microseconds=number) for number in numbers]


def columns(table: Table) -> dict[str, list[Any]]:
    """The columns of a table as lists of Python values. Raises UnreadableFile for a time that no calendar has."""
    with _translate_errors():
        found: dict[str, list[Any]] = table.to_pydict()
        return found


def append_column(table: Table, name: str, kind: str, values: Sequence[Any]) -> Table:
    """A table with one more column of the given type (a name of `TYPES`)."""
    return table.append_column(name, pa.array(values, TYPES[kind]))


def table_of(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows as a table with the given column types (names of `TYPES`)."""
    return pa.Table.from_pylist(list(rows), schema=_make_schema(columns))


def distinct_values(table: Table, column: str) -> list[Any]:
    """The different values of a column."""
    found: list[Any] = table.column(column).unique().to_pylist()
    return found


def is_number(kind: Any) -> bool:
    """Whether a column of this Arrow type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def values(array: Any) -> list[Any]:
    """A column of a batch, whose times are UTC, as Python values; a time that Python cannot represent becomes text.

    Raises Error for such a time in a list or a struct.
    """
    if not pa.types.is_timestamp(array.type):
        with suppress(OverflowError, ValueError):
            found: list[Any] = array.to_pylist()
            return found
    elif array.type.unit == "us":  # Python has no nanoseconds
        with suppress(OverflowError):  # such as the year 20000
            return _times(array.cast(pa.int64()).to_pylist(), UTC if array.type.tz else None)
    texts = array.cast(pa.string()).to_pylist()
    return [text and text.replace(" ", "T") for text in texts]


def _times(microseconds: Sequence[int | None], zone: tzinfo | None) -> list[datetime | None]:
    # Arrow's own conversion loads pandas if it is installed, which takes longer than most queries.
    epoch = datetime(1970, 1, 1, tzinfo=zone)
    return [None if moment is None else epoch + timedelta(microseconds=moment) for moment in microseconds]


def rename_columns(schema: Any, names: Sequence[str]) -> Any:
    """The schema of a stream, with other names for its columns."""
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])


def write_parquet(sink: IO[bytes], schema: Any, batches: Iterable[Batch]) -> None:
    """Writes a stream of batches as one Parquet file. Raises Error for a type that Parquet lacks."""
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch)


def column_names(path: Path) -> list[str]:
    """The columns of a Parquet file. Raises UnreadableFile if it is damaged."""
    with _translate_errors():
        found: list[str] = _open(path).schema_arrow.names
        return found


_IMAGES = ("img", "image")  # possible names of the column of images, the Hub's usual one first


def read_images(path: Path, labels: Sequence[str]) -> tuple[Any, list[int]]:
    """The images and labels of a Parquet shard; `labels` are the possible names of the column of labels, best first.

    Images are a list of encoded images, or an array of bytes [N, height, width, 3] if the shard holds raw pixels.
    Raises UnreadableFile if it is damaged or has other columns.
    """
    with _translate_errors():
        table = _open(path).read()
    column, label = (_find_column(table, names, labels) for names in (_IMAGES, labels))
    try:
        images = _read_column(table.column(column).combine_chunks())
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        kind = str(table.schema.field(column).type)[:100]
        raise UnreadableFile(
            f"has {column} of type {kind} ({error}); expected encoded images (bytes, or a struct with bytes), or lists "
            f"of height × width × 3 pixels, and {label} as whole numbers"
        ) from None
    found = table.column(label).to_pylist()
    if (isinstance(images, list) and None in images) or any(not isinstance(entry, int) for entry in found):
        raise UnreadableFile(f"contains something other than image bytes and whole-number {label}")
    return images, found


def _find_column(table: Table, names: Sequence[str], labels: Sequence[str]) -> str:
    """The column with one of these names: the first name, or the only one that the table has."""
    present = [name for name in names if name in table.column_names]
    if present and (present[0] == names[0] or len(present) == 1):
        return present[0]
    raise UnreadableFile(
        f"has the columns {', '.join(table.column_names)}; expected {' or '.join(_IMAGES)} with the images, and "
        f"{' or '.join(labels)} with the labels"
    )


def _read_column(column: Any) -> Any:
    kind = column.type
    if pa.types.is_struct(kind):
        column = column.field("bytes")
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.to_pylist()
    return _to_pixels(column.storage if isinstance(column, pa.ExtensionArray) else column)


def _to_pixels(column: Any) -> Any:
    """Lists of height × width × 3 whole numbers from 0 to 255, as an array."""
    shape = [len(column)]
    while isinstance(column, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        inner = column.flatten()
        shape.append(len(inner) // max(len(column), 1))
        column = inner
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"lists of {' × '.join(map(str, shape[1:])) or 'nothing'}")
    return column.cast(pa.uint8()).to_numpy(zero_copy_only=False).reshape(shape)


def _make_schema(columns: Mapping[str, str]) -> Any:
    return pa.schema([(name, TYPES[kind]) for name, kind in columns.items()])


def _open(source: Path | pa.BufferReader) -> pq.ParquetFile:
    # A single file, not a dataset: otherwise a folder name like `a=b` would become a column.
    return pq.ParquetFile(source, memory_map=False, page_checksum_verification=True)


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file makes Arrow raise errors of a dozen types, some of them late
        reason = first_line(error)
        raise UnreadableFile(f"is not a complete Parquet file ({reason})") from None
