"""The one door to Arrow: typed rows to Parquet files and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TYPES = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}

_COMPRESSED = 16  # rows from which on a file is compressed


class UnreadableFile(Exception):
    """A file that is not the Parquet that was wanted; the message says why."""


def to_parquet(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> bytes:
    """The Parquet file of rows with the given column types (names of `TYPES`), `facts` in its metadata."""
    schema = pa.schema([(name, TYPES[kind]) for name, kind in columns.items()], metadata=dict(facts))
    table = pa.Table.from_pylist(list(rows), schema=schema)
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
        table = _table(content, columns)
        present = set(table.column_names)
        missing = dict.fromkeys(name for name in columns if name not in present)
        rows = table.to_pylist()
        return [{**missing, **row} for row in rows] if missing else rows


def columns_from_parquet(content: bytes, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    """What `from_parquet` reads, a list a column instead of a mapping a row: for many rows many times as fast.

    Raises UnreadableFile as that does.
    """
    with _naming_damage():
        table = _table(content, columns)
        present, none = set(table.column_names), [None] * table.num_rows
        return {name: table.column(name).to_pylist() if name in present else none for name in columns}


def _table(content: bytes, columns: Mapping[str, str]) -> pa.Table:
    """The given columns of a Parquet file, but those that it lacks. Raises whatever Arrow does, or TypeError."""
    file = _open(pa.BufferReader(content))
    schema = file.schema_arrow
    present = [name for name in columns if name in schema.names]
    for name in present:
        if schema.field(name).type != TYPES[columns[name]]:
            raise TypeError(f"{name} is of type {schema.field(name).type}")
    table = file.read(columns=present, use_threads=False)  # threads pay for larger files than these
    if present and table.num_rows != file.metadata.num_rows:  # the footer has no checksum, but says it twice
        raise ValueError(f"{table.num_rows} rows of {file.metadata.num_rows}")
    return table


def read_images(path: Path, label: str) -> tuple[list[bytes], list[int]]:
    """The encoded images and labels of a Parquet shard laid out as on the Hugging Face hub.

    Raises UnreadableFile where it is damaged or has other columns.
    """
    with _naming_damage():
        table = _open(path).read()
    try:
        images = table.column("img").combine_chunks().field("bytes").to_pylist()
        labels = table.column(label).to_pylist()
    except (KeyError, AttributeError, TypeError, pa.ArrowException) as error:
        raise UnreadableFile(f"has no columns img.bytes and {label} ({error})") from None
    if any(not isinstance(image, bytes) for image in images) or any(not isinstance(entry, int) for entry in labels):
        raise UnreadableFile(f"holds something else than image bytes and whole-number {label}")
    return images, labels


def _open(source: Path | pa.BufferReader) -> pq.ParquetFile:
    # One file at a time, not a dataset: a folder name like `a=b` is no column here.
    return pq.ParquetFile(source, memory_map=False, page_checksum_verification=True)


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file makes Arrow raise errors of a dozen types, some of them late
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableFile(f"is not a whole Parquet file ({reason})") from None
