"""The only module that imports Arrow: typed rows to Parquet files and back."""

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

Table: TypeAlias = Any  # pa.Table, whose library has no types
Batch: TypeAlias = Any  # pa.RecordBatch
Error = pa.ArrowException

_COMPRESSED = 16  # rows from which on a file is compressed


class UnreadableFile(Exception):
    """A file that is not the expected Parquet; the message says why."""


def to_parquet(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> bytes:
    """The Parquet file of rows with the given column types (names of `TYPES`), `facts` in its metadata."""
    table = pa.Table.from_pylist(list(rows), schema=_schema(columns).with_metadata(dict(facts)))
    sink = pa.BufferOutputStream()
    # Most files hold one row, which nothing repeats: dictionaries and compression would only make them slower to write.
    compression = "zstd" if len(rows) >= _COMPRESSED else "none"
    pq.write_table(table, sink, compression=compression, use_dictionary=False, write_page_checksum=True)
    return bytes(sink.getvalue())


def from_parquet(content: bytes, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of a Parquet file, only the given columns (see `to_parquet`); one that it lacks reads as None.

    Raises UnreadableFile for a damaged file, and where a column has another type.
    """
    with _naming_damage():
        file = _open(pa.BufferReader(content))
        table = _whole(file, _fitting(file, columns))
        missing = dict.fromkeys(name for name in columns if name not in table.column_names)
        rows = table.to_pylist()
        return [{**missing, **row} for row in rows] if missing else rows


def table_from_parquet(content: bytes, columns: Mapping[str, str]) -> Table:
    """The same as a table with exactly the given columns, for many rows.

    Raises UnreadableFile for a damaged file, and where a column has another type.
    """
    with _naming_damage():
        file, wanted = _open(pa.BufferReader(content)), _schema(columns)
        if file.schema_arrow.equals(wanted):  # most are so, and to choose columns takes as long as to read them
            found = _whole(file).replace_schema_metadata(None)
        else:
            found = _completed(_whole(file, _fitting(file, columns)), columns)
        found.validate(full=True)  # text that is no UTF-8 is seen here, or not before it is shown
        return found


def _completed(found: Table, columns: Mapping[str, str]) -> Table:
    """A table with nothing in the columns that it lacked."""
    held = set(found.column_names)
    arrays = [
        found.column(name) if name in held else pa.nulls(found.num_rows, TYPES[kind]) for name, kind in columns.items()
    ]
    return pa.table(arrays, schema=_schema(columns))


def _fitting(file: Any, columns: Mapping[str, str]) -> list[str]:
    """Those of the given columns that a file has. Raises TypeError for one of another type."""
    schema = file.schema_arrow
    present = [name for name in columns if name in schema.names]
    for name in present:
        if schema.field(name).type != TYPES[columns[name]]:
            raise TypeError(f"{name} is of type {schema.field(name).type}")
    return present


def _whole(file: Any, columns: list[str] | None = None) -> Table:
    """All rows of a file. Raises ValueError where it has another number of them than it says."""
    table = file.read(columns=columns, use_threads=False)  # threads pay for larger files than these
    if table.num_rows != file.metadata.num_rows:  # the footer has no checksum, but says it twice
        raise ValueError(f"{table.num_rows} rows of {file.metadata.num_rows}")
    return table


def join(tables: Sequence[Table], columns: Mapping[str, str]) -> Table:
    """The rows of all tables, one after another; no rows where there are no tables."""
    # One chunk a column: a query over thousands of small ones takes several times as long.
    return pa.concat_tables(tables).combine_chunks() if tables else _schema(columns).empty_table()


def rows(table: Table) -> list[dict[str, Any]]:
    """Its rows as Python's own values. Raises UnreadableFile for a time that no calendar has."""
    with _naming_damage():
        found: list[dict[str, Any]] = table.to_pylist()
        return found


def columns(table: Table) -> dict[str, list[Any]]:
    """Its columns as lists of Python's own values. Raises UnreadableFile for a time that no calendar has."""
    with _naming_damage():
        found: dict[str, list[Any]] = table.to_pydict()
        return found


def append_column(table: Table, name: str, kind: str, values: Sequence[Any]) -> Table:
    """A table with one more column of the given type (a name of `TYPES`)."""
    return table.append_column(name, pa.array(values, TYPES[kind]))


def table_of(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows as a table with the given column types (names of `TYPES`)."""
    return pa.Table.from_pylist(list(rows), schema=_schema(columns))


def distinct_values(table: Table, column: str) -> list[Any]:
    """The different values of a column."""
    found: list[Any] = table.column(column).unique().to_pylist()
    return found


def is_number(kind: Any) -> bool:
    """Whether a column of this Arrow type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def values(array: Any) -> list[Any]:
    """A column of a batch, whose times are UTC, as Python's own values; a time that Python lacks as text.

    Raises Error for one in a list or a struct.
    """
    if not pa.types.is_timestamp(array.type):
        with suppress(OverflowError, ValueError):
            found: list[Any] = array.to_pylist()
            return found
    elif array.type.unit == "us":  # nanoseconds are finer than Python's
        with suppress(OverflowError):  # the year 20000
            return _times(array.cast(pa.int64()).to_pylist(), UTC if array.type.tz else None)
    texts = array.cast(pa.string()).to_pylist()
    return [text and text.replace(" ", "T") for text in texts]


def _times(microseconds: Sequence[int | None], zone: tzinfo | None) -> list[datetime | None]:
    # Arrow's own way loads pandas where there is one, which takes longer than most queries.
    epoch = datetime(1970, 1, 1, tzinfo=zone)
    return [None if moment is None else epoch + timedelta(microseconds=moment) for moment in microseconds]


def rename_columns(schema: Any, names: Sequence[str]) -> Any:
    """The schema of a stream, its columns under other names."""
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])


def write_parquet(sink: IO[bytes], schema: Any, batches: Iterable[Batch]) -> None:
    """Writes a stream of batches as one Parquet file. Raises Error for a type that Parquet has not."""
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch)


def column_names(path: Path) -> list[str]:
    """The columns of a Parquet file. Raises UnreadableFile where it is damaged."""
    with _naming_damage():
        found: list[str] = _open(path).schema_arrow.names
        return found


_IMAGES = ("img", "image")  # what the column of images is called, on the hub first


def read_images(path: Path, labels: Sequence[str]) -> tuple[Any, list[int]]:
    """The images and labels of a Parquet shard; `labels` are the names that the labels' column may have, best first.

    Images are a list of encoded ones, or an array of bytes [N, height, width, 3] where the shard holds bare pixels.
    Raises UnreadableFile where it is damaged or has other columns.
    """
    with _naming_damage():
        table = _open(path).read()
    column, label = (_one_of(table, names, labels) for names in (_IMAGES, labels))
    try:
        images = _images(table.column(column).combine_chunks())
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        kind = str(table.schema.field(column).type)[:100]
        raise UnreadableFile(
            f"has {column} of type {kind} ({error}); expected encoded images (bytes, or a struct with bytes), or lists "
            f"of height × width × 3 pixels, and {label} as whole numbers"
        ) from None
    found = table.column(label).to_pylist()
    if (isinstance(images, list) and None in images) or any(not isinstance(entry, int) for entry in found):
        raise UnreadableFile(f"holds something else than image bytes and whole-number {label}")
    return images, found


def _one_of(table: Table, names: Sequence[str], labels: Sequence[str]) -> str:
    """The column of one of these names: the best name, or the only one that is there."""
    present = [name for name in names if name in table.column_names]
    if present and (present[0] == names[0] or len(present) == 1):
        return present[0]
    raise UnreadableFile(
        f"has the columns {', '.join(table.column_names)}; expected {' or '.join(_IMAGES)} with the images, and "
        f"{' or '.join(labels)} with the labels"
    )


def _images(column: Any) -> Any:
    kind = column.type
    if pa.types.is_struct(kind):
        column = column.field("bytes")
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.to_pylist()
    return _pixels(column.storage if isinstance(column, pa.ExtensionArray) else column)


def _pixels(column: Any) -> Any:
    """Lists of height × width × 3 whole numbers from 0 to 255, as an array."""
    shape = [len(column)]
    while isinstance(column, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        inner = column.flatten()
        shape.append(len(inner) // max(len(column), 1))
        column = inner
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"lists of {' × '.join(map(str, shape[1:])) or 'nothing'}")
    return column.cast(pa.uint8()).to_numpy(zero_copy_only=False).reshape(shape)


def _schema(columns: Mapping[str, str]) -> Any:
    return pa.schema([(name, TYPES[kind]) for name, kind in columns.items()])


def _open(source: Path | pa.BufferReader) -> pq.ParquetFile:
    # One file at a time, not a dataset: a folder name like `a=b` is no column here.
    return pq.ParquetFile(source, memory_map=False, page_checksum_verification=True)


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file makes Arrow raise errors of a dozen types, some of them late
        reason = first_line(error)
        raise UnreadableFile(f"is not a whole Parquet file ({reason})") from None
