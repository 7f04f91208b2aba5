"""The door to Arrow: what is written is read back exactly, and a damaged file says so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator import parquet

COLUMNS = {"name": "string", "count": "int", "share": "float", "at": "timestamp"}
ROW = {"name": "ResNet ←", "count": 3, "share": 1 / 3, "at": datetime(2024, 2, 29, 23, 59, 59, 123_456, UTC)}
EMPTY = dict.fromkeys(COLUMNS)

VALUES = st.fixed_dictionaries(
    {
        "name": st.none() | st.text(st.characters(codec="utf-8")),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
        "share": st.none() | st.floats(allow_nan=False),
        "at": st.none() | st.datetimes(timezones=st.just(UTC)),
    }
)


def written(rows: list[dict[str, Any]]) -> bytes:
    """A file with rows in it."""
    return parquet.to_parquet(COLUMNS, rows, {})


def read_rows(content: bytes, columns: Mapping[str, str] = COLUMNS) -> list[dict[str, Any]]:
    """The rows of a file."""
    return parquet.rows(parquet.table_from_parquet(content, columns))


@given(st.lists(VALUES, max_size=5))
@example([EMPTY, ROW])
def test_rows_round_trip(rows: list[dict[str, Any]]) -> None:
    read = read_rows(written(rows))
    assert read == rows
    assert parquet.rows(parquet.table_of(COLUMNS, rows)) == rows
    # 1 == 1.0, so the types are compared too.
    kinds = [[type(row[name]) for name in COLUMNS] for row in rows]
    assert [[type(row[name]) for name in COLUMNS] for row in read] == kinds


@given(st.floats())
@example(math.nan)
@example(-0.0)
@example(5e-324)
@example(0.1 + 0.2)
def test_floats_keep_every_digit(value: float) -> None:
    [row] = read_rows(written([{**EMPTY, "share": value}]), {"share": "float"})
    assert row["share"].hex() == value.hex()


def test_timestamps_are_one_moment_in_utc() -> None:
    east = datetime(2024, 1, 1, 1, 30, 0, 1, timezone(timedelta(hours=5, minutes=30)))
    [row] = read_rows(written([{**ROW, "at": east}]), {"at": "timestamp"})
    assert row["at"] == east
    assert row["at"].utcoffset() == timedelta(0)


def test_columns_have_their_types_and_the_file_its_facts() -> None:
    schema = pq.read_schema(pa.BufferReader(parquet.to_parquet(COLUMNS, [EMPTY], {"fact": "ü"})))
    assert schema.names == list(COLUMNS)
    assert schema.types == [pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", "UTC")]
    assert schema.metadata[b"fact"] == "ü".encode()


def test_equal_rows_are_equal_bytes() -> None:
    assert written([ROW, EMPTY]) == written([ROW, EMPTY])
    assert written([]) != written([EMPTY])


def test_only_the_named_columns_are_read_and_missing_ones_as_none() -> None:
    assert read_rows(written([ROW]), {"share": "float", "later": "int"}) == [{"share": 1 / 3, "later": None}]
    assert read_rows(written([]), {"share": "float", "later": "int"}) == []


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("kind", parquet.TYPES)
def test_a_column_of_another_type_is_unreadable(name: str, kind: str) -> None:
    if kind == COLUMNS[name]:
        assert read_rows(written([ROW]), {name: kind}) == [{name: ROW[name]}]
        return
    with pytest.raises(
        parquet.UnreadableFile, match=rf"\({name} is of type {re.escape(str(parquet.TYPES[COLUMNS[name]]))}"
    ):
        read_rows(written([ROW]), {name: kind})


def test_a_column_that_is_there_twice_is_unreadable() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([pa.array(["one"]), pa.array(["two"])], ["name", "name"]), sink)
    with pytest.raises(parquet.UnreadableFile):
        read_rows(bytes(sink.getvalue()), COLUMNS)


def test_a_folder_name_is_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "label=9"
    folder.mkdir()
    assert parquet.read_images(shard(folder / "a.parquet", [b"one"], [1]), ("label",)) == ([b"one"], [1])


# Damage.


def flipped(raw: bytes, place: int, bit: int) -> bytes:
    """The bytes with one bit of them changed."""
    return raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every test writes anew."""
    return tmp_path_factory.mktemp("arrow") / "rows.parquet"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut off": lambda raw: raw[:-1],
    "half": lambda raw: raw[: len(raw) // 2],
    "begins late": lambda raw: raw[1:],
    "text": lambda raw: b"no,method\n",
    "zeros": lambda raw: bytes(len(raw)),
    "footer alone": lambda raw: raw[:4] + bytes(len(raw) // 2) + raw[len(raw) // 2 + 4 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_unreadable(file: Path, damage: str) -> None:
    raw = DAMAGE[damage](written([ROW] * 3))
    with pytest.raises(parquet.UnreadableFile, match=r"^is not a complete Parquet file \(.+\)$"):
        read_rows(raw, COLUMNS)
    file.write_bytes(raw)
    with pytest.raises(parquet.UnreadableFile, match=r"^is not a complete Parquet file \(.+\)$"):
        parquet.read_images(file, ("label",))


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_never_escapes_as_another_error_nor_changes_a_value(data: st.DataObject) -> None:
    raw = written([ROW] * 3)
    place = data.draw(st.integers(0, len(raw) - 1))
    try:
        rows = read_rows(flipped(raw, place, data.draw(st.integers(0, 7))), COLUMNS)
    except parquet.UnreadableFile:
        return
    # Pages have checksums; Parquet's footer has none, so a change there may go unnoticed (a column's name or unit).
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    if place >= footer:
        return
    assert len(rows) == 3
    assert all(row[name] in (ROW[name], None) for row in rows for name in COLUMNS)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_noise_is_unreadable(noise: bytes, starts: bool, ends: bool, footer: int) -> None:
    raw = b"PAR1" * starts + noise + (footer.to_bytes(4, "little") + b"PAR1") * ends
    with pytest.raises(parquet.UnreadableFile):
        read_rows(raw, COLUMNS)


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(parquet.UnreadableFile):
            parquet.read_images(path, ("label",))


# Images as on the Hugging Face hub.


def shard(path: Path, images: list[Any], labels: list[Any]) -> Path:
    """A file with such columns."""
    column = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(pa.table({"img": column, "label": labels}), path)
    return path


def test_images_and_labels_are_read(file: Path) -> None:
    assert parquet.read_images(shard(file, [b"one", b"two"], [1, 0]), ("label",)) == ([b"one", b"two"], [1, 0])


@pytest.mark.parametrize(
    ("images", "labels", "label"),
    [
        ([b"one"], [1], "fine_label"),
        ([None, b"two"], [1, 0], "label"),
        (["text"], [1], "label"),
        ([b"one"], ["cat"], "label"),
        ([b"one", b"two"], [1, None], "label"),
    ],
)
def test_other_columns_are_refused(file: Path, images: list[Any], labels: list[Any], label: str) -> None:
    with pytest.raises(parquet.UnreadableFile, match=label):
        parquet.read_images(shard(file, images, labels), (label,))


def test_images_of_another_table_are_refused(file: Path) -> None:
    file.write_bytes(written([ROW]))
    with pytest.raises(
        parquet.UnreadableFile,
        match="name, count, share, at; expected img or image with the images, and label with the labels",
    ):
        parquet.read_images(file, ("label",))


@given(st.lists(VALUES, max_size=5))
def test_columns_are_those_of_the_rows(rows: list[dict[str, Any]]) -> None:
    wanted = {**COLUMNS, "later": "int"}  # which a file of an earlier version lacks
    found = parquet.columns(parquet.table_from_parquet(written(rows), wanted))
    assert found == {name: [row.get(name) for row in rows] for name in wanted}


def test_a_table_has_the_columns_that_were_asked_for_in_their_order() -> None:
    asked = {"at": "timestamp", "new": "float", "name": "string"}
    table = parquet.table_from_parquet(written([ROW]), asked)
    assert parquet.rows(table) == [{"at": ROW["at"], "new": None, "name": ROW["name"]}]
    assert table.schema.types == [parquet.TYPES[kind] for kind in asked.values()]
    with pytest.raises(parquet.UnreadableFile, match="count is of type int64"):
        parquet.table_from_parquet(written([ROW]), {"count": "float"})


def test_tables_are_joined_one_after_another() -> None:
    tables = [parquet.table_of(COLUMNS, [{**ROW, "count": number}] * number) for number in (1, 0, 2)]
    joined = parquet.join(tables, COLUMNS)
    assert joined.column("count").to_pylist() == [1, 2, 2]
    assert joined.column("count").num_chunks == 1
    assert parquet.distinct_values(joined, "count") == [1, 2]
    assert parquet.join([], COLUMNS).schema == joined.schema
