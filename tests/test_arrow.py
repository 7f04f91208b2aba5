"""The door to Arrow: what is written is read back exactly, and a damaged file says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator import arrow

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


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example of a test writes anew."""
    return tmp_path_factory.mktemp("arrow") / "rows.parquet"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The path, with rows in it."""
    arrow.write_rows(path, COLUMNS, rows, {})
    return path


@settings(deadline=None)
@given(st.lists(VALUES, max_size=5))
@example([EMPTY, ROW])
def test_rows_round_trip(file: Path, rows: list[dict[str, Any]]) -> None:
    read = arrow.read_rows([written(file, rows)], list(COLUMNS))
    assert read == rows
    # 1 == 1.0, so the types are compared too.
    kinds = [[type(row[name]) for name in COLUMNS] for row in rows]
    assert [[type(row[name]) for name in COLUMNS] for row in read] == kinds


@settings(deadline=None)
@given(st.floats())
@example(math.nan)
@example(-0.0)
@example(5e-324)
@example(0.1 + 0.2)
def test_floats_keep_every_digit(file: Path, value: float) -> None:
    [row] = arrow.read_rows([written(file, [{**EMPTY, "share": value}])], ["share"])
    assert row["share"].hex() == value.hex()


def test_timestamps_are_one_moment_in_utc(file: Path) -> None:
    east = datetime(2024, 1, 1, 1, 30, 0, 1, timezone(timedelta(hours=5, minutes=30)))
    [row] = arrow.read_rows([written(file, [{**ROW, "at": east}])], ["at"])
    assert row["at"] == east
    assert row["at"].utcoffset() == timedelta(0)


def test_columns_have_their_types_and_the_file_its_facts(file: Path) -> None:
    arrow.write_rows(file, COLUMNS, [EMPTY], {"fact": "ü"})
    schema = pq.read_schema(file)
    assert schema.names == list(COLUMNS)
    assert schema.types == [pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", "UTC")]
    assert schema.metadata[b"fact"] == "ü".encode()


def test_files_are_read_in_the_given_order(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{count}.parquet", [{**ROW, "count": count}] * count) for count in (2, 1, 0, 3)]
    assert [row["count"] for row in arrow.read_rows(paths, ["count"])] == [2, 2, 1, 3, 3, 3]
    assert arrow.read_rows([], ["count"]) == []


def test_only_the_named_columns_are_read_and_missing_ones_as_none(file: Path) -> None:
    rows = arrow.read_rows([written(file, [ROW])], ["share", "later"])
    assert rows == [{"share": 1 / 3, "later": None}]


def test_a_folder_name_is_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "name=folder"
    folder.mkdir()
    assert arrow.read_rows([written(folder / "a.parquet", [ROW])], ["name"]) == [{"name": ROW["name"]}]


# Damage.


def flipped(raw: bytes, place: int) -> bytes:
    """The bytes with one of them changed."""
    return raw[:place] + bytes([raw[place] ^ 0x80]) + raw[place + 1 :]


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
    file.write_bytes(DAMAGE[damage](written(file, [ROW] * 3).read_bytes()))
    with pytest.raises(arrow.UnreadableFile, match=r"^is not a whole Parquet file \(.+\)$"):
        arrow.read_rows([file], list(COLUMNS))


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_never_escapes_as_another_error_nor_changes_a_value(file: Path, data: st.DataObject) -> None:
    raw = written(file, [ROW] * 3).read_bytes()
    place = data.draw(st.integers(0, len(raw) - 1))
    file.write_bytes(flipped(raw, place))
    try:
        rows = arrow.read_rows([file], list(COLUMNS))
    except arrow.UnreadableFile:
        return
    # Pages have checksums; Parquet's footer has none, so a change there may go unnoticed (a column's name or unit).
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    if place >= footer:
        return
    assert len(rows) == 3
    assert all(row[name] in (ROW[name], None) for row in rows for name in COLUMNS)


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(arrow.UnreadableFile):
            arrow.read_rows([path], ["name"])


# Images as on the Hugging Face hub.


def shard(path: Path, images: list[Any], labels: list[Any]) -> Path:
    """A file with such columns."""
    column = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(pa.table({"img": column, "label": labels}), path)
    return path


def test_images_and_labels_are_read(file: Path) -> None:
    assert arrow.read_images(shard(file, [b"one", b"two"], [1, 0]), "label") == ([b"one", b"two"], [1, 0])


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
    with pytest.raises(arrow.UnreadableFile, match=label):
        arrow.read_images(shard(file, images, labels), label)


def test_images_of_another_table_are_refused(file: Path) -> None:
    with pytest.raises(arrow.UnreadableFile, match="img.bytes"):
        arrow.read_images(written(file, [ROW]), "label")
