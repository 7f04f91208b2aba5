"""The storage: every name lies below its root, tables are listed by their facts alone, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import StorageError
from orchestrator.files import PART
from orchestrator.records import TableKey
from orchestrator.storage.backend import MARKER, Folder
from orchestrator.storage.layout import FileKind, Storage, StoredFile, encode_key, read_json, write_json

KEY = TableKey("0123456789ab", "logits", 4, True, 50_000)
TRIAL_IDS = st.text("0123456789abcdef", min_size=12, max_size=12)
KEYS = st.builds(
    TableKey,
    teacher_id=TRIAL_IDS,
    outputs=st.sampled_from(["logits", "pooled"]),
    crop_padding=st.integers(0, 40),
    flip=st.booleans(),
    images=st.integers(1, 50_000),
    padding=st.sampled_from(["reflect", "zero"]),
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A prepared storage without a dataset."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    return storage


# The address.


def test_a_folder_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage.at("runs")
    assert storage == Storage.at(tmp_path / "runs") == Storage.at(storage.backend.address)
    assert storage.backend == Folder(tmp_path / "runs")
    assert hash(storage) == hash(Storage.at(tmp_path / "runs"))
    monkeypatch.chdir("/")
    assert Storage.at(storage.backend.address) == storage


def test_a_bucket_is_named_by_its_scheme() -> None:
    from orchestrator.storage.bucket import Bucket

    for address in ("s3://bucket/folder", "gs://bucket"):
        assert isinstance(Storage.at(address).backend, Bucket)


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("http://host/a", "name a folder, or a bucket like s3://bucket/folder"),
        ("hdfs://a/b", "name a folder, or a bucket like s3://bucket/folder"),
        ("://a", "name a folder, or a bucket like s3://bucket/folder"),
        ("S3://bucket", "write s3://bucket"),
        ("s3a://b", "write s3://b"),
        ("file:///a", "write the path alone, like /a"),
    ],
)
def test_another_kind_of_address_is_refused(address: str, fix: str) -> None:
    with pytest.raises(StorageError, match=fix) as caught:
        Storage.at(address)
    assert repr(address) in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["file", "file/runs", "file/a/b"])
def test_a_file_is_not_a_storage(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        Storage.at(tmp_path / name)
    assert str(caught.value) == (f"'{tmp_path}/file' is a file, expected a folder; name another folder with --storage")


def test_prepare_makes_the_folder_and_its_marker_and_nothing_else(storage: Storage) -> None:
    storage.prepare()
    assert [entry.name for entry in storage.backend.list_files("")] == [MARKER]


# Tables and names.


def write_table(storage: Storage, key: TableKey) -> None:
    """Writes a stand-in for a whole table, for tests that only list tables."""
    storage.backend.write(storage.table(key), b"the array")
    write_json(storage, storage.table_facts(key), {"key": encode_key(key)})


def test_tables_lists_every_whole_table(storage: Storage) -> None:
    assert list(storage.list_tables()) == []
    keys = {KEY, replace(KEY, outputs="pooled"), replace(KEY, teacher_id="ba9876543210", flip=False)}
    for key in keys:
        write_table(storage, key)
    assert len(list(storage.list_tables())) == len(keys)
    assert set(storage.list_tables()) == keys


def test_tables_ignores_a_table_without_facts_and_facts_without_a_table(storage: Storage) -> None:
    storage.backend.write(storage.table(KEY), b"built, but not checked to the end")
    assert list(storage.list_tables()) == []
    write_table(storage, KEY)
    storage.backend.delete(storage.table(KEY))
    assert list(storage.list_tables()) == []


def test_tables_of_a_storage_that_was_never_used(tmp_path: Path) -> None:
    assert list(Storage.at(tmp_path / "nowhere").list_tables()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"key": 1}', '{"key": {"teacher_id": "a"}}', "\0"])
def test_tables_ignores_damaged_facts(storage: Storage, text: str) -> None:
    write_table(storage, KEY)
    storage.backend.write(storage.table_facts(KEY), text.encode())
    assert list(storage.list_tables()) == []


def test_facts_under_another_name_are_no_table(storage: Storage) -> None:
    other = replace(KEY, images=7)
    write_table(storage, KEY)
    write_json(storage, storage.table_facts(KEY), {"key": encode_key(other)})
    storage.backend.write(storage.table(other), b"the array")
    assert list(storage.list_tables()) == []


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["..", "../../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {
        "teacher_id": TRIAL_IDS
        | st.sampled_from(["..", "../../../etc", "0123456789ab/..", "", "/", "0123456789AB"])
        | JSON,
        "answers": st.sampled_from(["logits", "pooled", "..", "../../x", "a/b", "", "/etc/passwd"]) | JSON,
        "crop_padding": st.integers(-3, 4) | st.integers() | JSON,
        "flip": st.booleans() | JSON,
        "images": st.integers(-2, 9) | st.integers() | JSON,
    },
    optional={"padding": st.sampled_from(["reflect", "zero", "..", "a/b", ""]) | JSON},
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(JSON, st.fixed_dictionaries({"key": JSON}), st.fixed_dictionaries({"key": NEARLY})))
@example({"key": {**encode_key(KEY), "crop_padding": 1e400}})
@example({"key": {**encode_key(KEY), "crop_padding": 10**4200}})
@example({"key": {**encode_key(KEY), "images": True}})
@example({"key": {**encode_key(KEY), "images": 5e4}})
@example({"key": {**encode_key(KEY), "flip": 1}})
@example({"key": {**encode_key(KEY), "answers": "maps"}})
@example({"key": {**encode_key(KEY), "padding": "../zero"}})
@example({"key": {**encode_key(KEY), "teacher_id": "0123456789ab\n"}})
def test_no_facts_lead_out_of_the_tables(storage: Storage, facts: Any) -> None:
    write_table(storage, KEY)
    text = json.dumps(facts)
    for name in (storage.table_facts(KEY), "teachers/x.json", "teachers/0123456789ab/../../x.json"):
        storage.backend.write(name, text.encode())
    found = list(storage.list_tables())
    storage.backend.delete("teachers/x.json")
    assert found in ([], [KEY])
    for key in found:
        assert_below(storage, key)


def assert_below(storage: Storage, key: TableKey) -> None:
    """A key as a plan makes it, whose names lie below the folder of tables."""
    kinds = [type(getattr(key, name)) for name in TableKey.__slots__]
    assert kinds == [str, str, int, bool, int, str]
    for name in (storage.table(key), storage.table_facts(key)):
        assert PurePosixPath(name).parent == PurePosixPath("teachers", key.teacher_id)
        assert ".." not in PurePosixPath(name).parts


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_facts_are_no_table(storage: Storage, depth: int) -> None:
    write_table(storage, KEY)
    for text in ("[" * depth, "[" * depth + "]" * depth, '{"key":' * depth + "1" + "}" * depth):
        storage.backend.write(storage.table_facts(KEY), text.encode())
        assert list(storage.list_tables()) == []


def names(storage: Storage, key: TableKey, trial_id: str) -> Iterator[str]:
    """A name of every kind."""
    yield from (storage.table(key), storage.table_facts(key), storage.weights(trial_id), storage.trial_row(trial_id))
    yield from (storage.trial_epochs(trial_id), storage.dataset("digits", trial_id), storage.plan(trial_id))
    yield from (storage.checkpoint(trial_id, 1, 0), storage.claim(f"trial-{trial_id}", "00ff"))


@given(KEYS, TRIAL_IDS)
def test_every_name_lies_below_the_root(key: TableKey, trial_id: str) -> None:
    storage = Storage.at("/storage")
    found = list(names(storage, key, trial_id))
    assert len(set(found)) == len(found)
    for name in found:
        path = PurePosixPath(name)
        assert name == str(path) and not path.is_absolute() and ".." not in path.parts
        assert not path.name.startswith((".", PART)), "a name that readers would pass over"
        assert storage.backend.describe(name) == f"/storage/{name}"
    assert storage.trial_row(trial_id).startswith(f"{storage.trial_rows}/")
    assert storage.trial_epochs(trial_id).startswith(f"{storage.epoch_rows}/")
    assert storage.checkpoint(trial_id, 3, 4).startswith(f"{storage.checkpoints(trial_id)}/")


POSITIONS = st.tuples(st.integers(1, 999_999), st.integers(0, 99_999_999))


@given(POSITIONS, POSITIONS)
def test_later_checkpoints_sort_after_earlier_ones(first: tuple[int, int], second: tuple[int, int]) -> None:
    storage = Storage.at("/storage")
    earlier, later = (storage.checkpoint("0123456789ab", *position) for position in sorted((first, second)))
    assert earlier <= later and (earlier == later) == (first == second)


@given(KEYS, KEYS)
def test_two_tables_of_one_teacher_never_share_a_name(first: TableKey, second: TableKey) -> None:
    second = replace(second, teacher_id=first.teacher_id)
    assert (first.name == second.name) == (first == second)
    assert (Storage.at("/").table(first) == Storage.at("/").table(second)) == (first == second)


@given(KEYS)
def test_a_key_is_one_view_for_each_flip_and_offset(key: TableKey) -> None:
    offsets = range(-key.crop_padding, key.crop_padding + 1)
    assert key.views == len(offsets) ** 2 * len([False, True][: 1 + key.flip])


# JSON.


def test_json_round_trip(storage: Storage) -> None:
    data = {"b": [1, 2.5, None, "ü"], "a": {"nested": True}}
    write_json(storage, "file", data)
    assert read_json(storage, "file") == data
    assert storage.backend.read("file").endswith(b"}\n")


@pytest.mark.parametrize("text", [b"\xff{", b"", b"{", b"[" * 100_000, b"\0", b"1" * 5000])
def test_damaged_json_reads_as_none(storage: Storage, text: bytes) -> None:
    storage.backend.write("damaged", text)
    assert read_json(storage, "damaged") is None


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_no_bytes_are_an_error(storage: Storage, raw: bytes) -> None:
    storage.backend.write("any", raw)
    read_json(storage, "any")


def test_missing_json_reads_as_none(storage: Storage) -> None:
    assert read_json(storage, "missing") is None
    storage.backend.write("file", b"{}")
    assert read_json(storage, "file/below") is None


# Names.

STORAGE = Storage(Folder(Path("runs")))
TRIAL = "0123456789ab"
TABLE = TableKey(TRIAL, "pooled", 10, True, 60)
FILES = [
    (STORAGE.weights(TRIAL), StoredFile(FileKind.WEIGHTS, TRIAL)),
    (STORAGE.table(TABLE), StoredFile(FileKind.TABLE, TRIAL, TABLE)),
    (STORAGE.table_facts(TABLE), StoredFile(FileKind.TABLE_FACTS, TRIAL, TABLE)),
    (STORAGE.table_slice(TABLE, "89abcdef", 1_234_567), StoredFile(FileKind.TABLE_SLICE, TRIAL, TABLE)),
    (STORAGE.dataset("cifar10", "0a" * 6), StoredFile(FileKind.DATASET)),
    (STORAGE.trial_row(TRIAL), StoredFile(FileKind.TRIAL_ROW, TRIAL)),
    (STORAGE.trial_epochs(TRIAL), StoredFile(FileKind.TRIAL_EPOCHS, TRIAL)),
    (STORAGE.copied(STORAGE.trial_rows), StoredFile(FileKind.COPIED_ROWS)),
    (STORAGE.copied(STORAGE.epoch_rows), StoredFile(FileKind.COPIED_ROWS)),
    (STORAGE.checkpoint(TRIAL, 1, 1_234_567_890), StoredFile(FileKind.CHECKPOINT, TRIAL)),
    (STORAGE.claim(f"trial-{TRIAL}", "0" * 16), StoredFile(FileKind.CLAIM)),
    (STORAGE.plan(TRIAL), StoredFile(FileKind.PLAN)),
    (STORAGE.log(TRIAL), StoredFile(FileKind.LOG, TRIAL)),
    (STORAGE.stop("launch-0a"), StoredFile(FileKind.STOP)),
]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_name_shows_what_a_file_is(name: str, file: StoredFile) -> None:
    assert STORAGE.parse(name) == file and STORAGE.is_ours(name)
    assert STORAGE.has_folder(name.rpartition("/")[0])
    for other in (f"{name}.bak", f"x/{name}", name.upper(), name.replace("/", "//"), ""):
        assert STORAGE.parse(other) is None


def test_every_kind_of_file_has_a_name() -> None:
    assert {file.kind for _, file in FILES} == set(FileKind)


@pytest.mark.parametrize(
    "name",
    [
        f"teachers/{TRIAL}/logits-p04-flip-n60.npy", f"teachers/{TRIAL}/logits-p4-flip-n060.json",
        f"teachers/{TRIAL}/logits-p4-flip-n60-89abcdef-0000001.slice", f"teachers/{TRIAL}/logits-p{10**9}-flip-n1.npy",
        f"checkpoints/{TRIAL}/0000001-00000000.checkpoint", f"checkpoints/{TRIAL}/000001-000000000.checkpoint",
    ],
)  # fmt: skip
def test_a_number_is_written_in_one_way(name: str) -> None:
    assert STORAGE.parse(name) is None


@pytest.mark.parametrize("folder", ["", "trials", "teachers", "checkpoints", "results", f"logs/{TRIAL}", "mine", "a/b"])
def test_other_folders_are_not_ours(folder: str) -> None:
    assert not STORAGE.has_folder(folder)
