"""The copy of many rows in one file: every reader gets what the trials' own files say, whatever happens meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reported import epoch, row

from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import compaction
from orchestrator.storage.backend import Folder
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire

MANY = 20  # more than are read by name


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a copy of three files, even if they are new."""
    monkeypatch.setattr(compaction, "_WORTH", 3)
    monkeypatch.setattr(compaction, "_SETTLED", -60.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A storage with finished trials."""
    made = Storage.at(tmp_path / "runs")
    made.prepare()
    for number in range(MANY):
        write(made, number)
    return made


def make(number: int, acc: float = 50.0) -> tuple[TrialRecord, list[EpochRecord]]:
    return replace(row(number, acc=acc), weights_bytes=1), [epoch(at, acc + at) for at in range(1, 2 + number % 3)]


def write(storage: Storage, number: int, acc: float = 50.0) -> None:
    """Writes a trial, as the end of its training does."""
    record, epochs = make(number, acc)
    store.write_epochs(storage, record.trial_id, epochs)
    store.write_trial(storage, record)
    storage.backend.write(storage.weights(record.trial_id), b"0")


def delete(storage: Storage, number: int) -> None:
    """Removes a trial's row and epochs."""
    storage.backend.delete(storage.trial_row(f"{number:012x}"))
    storage.backend.delete(storage.trial_epochs(f"{number:012x}"))


def read_all(storage: Storage) -> list[Any]:
    """What each reader gives."""
    trial_ids = [f"{number:012x}" for number in range(MANY + 5)]
    return [
        store.read_trials(storage),
        store.read_trials(storage, trial_ids),
        store.read_epochs(storage),
        store.read_epoch_columns(storage, trial_ids, ["epoch", "test_acc"]),
        store.read_states(storage),
        store.read_trials_table(storage).to_pylist(),
        store.read_epochs_table(storage).to_pylist(),
    ]


def read_singly(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The same, from the trials' own files alone."""
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "read_copied", lambda *given: {})
        return read_all(storage)


def count_reads(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many files it takes to read all rows."""
    names: list[str] = []
    with monkeypatch.context() as patch:
        read = Folder.read
        patch.setattr(Folder, "read", lambda self, name: (names.append(name), read(self, name))[1])
        store.read_trials(storage)
    return len(names)


def test_a_copy_takes_the_place_of_many_files(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_all(storage)
    store.compact(storage)
    assert count_reads(storage, monkeypatch) == 1
    assert read_all(storage) == before == read_singly(storage, monkeypatch)
    for number in range(MANY):
        assert storage.backend.stat(storage.trial_row(f"{number:012x}")), "the trial's own file stays"


def test_few_or_new_files_are_not_copied(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_WORTH", MANY + 1)
    store.compact(storage)
    monkeypatch.setattr(compaction, "_WORTH", 3)
    monkeypatch.setattr(compaction, "_SETTLED", 60.0)
    store.compact(storage)
    assert list(storage.backend.list_files(storage.copied_rows)) == []


def test_a_copy_is_written_again_only_for_many_new_files(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    store.compact(storage)
    first = storage.backend.read(storage.copied(storage.trial_rows))
    write(storage, MANY)
    store.compact(storage)
    assert storage.backend.read(storage.copied(storage.trial_rows)) == first
    assert count_reads(storage, monkeypatch) == 2
    for number in range(MANY + 1, MANY + 4):
        write(storage, number)
    store.compact(storage)
    assert count_reads(storage, monkeypatch) == 1
    assert len(store.read_trials(storage)) == MANY + 4


Change = tuple[str, int, float]
CHANGES = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "compact", "damage"]), st.integers(0, MANY + 4), st.floats(0, 100)),
    max_size=12,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
def test_readers_give_what_the_files_of_the_trials_say(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, changes: list[Change]
) -> None:
    for kind, number, acc in changes:
        if kind == "write":
            write(storage, number, acc)
        elif kind == "delete":
            delete(storage, number)
        elif kind == "compact":
            store.compact(storage)
        elif storage.backend.stat(name := storage.copied(storage.trial_rows)):
            content = bytearray(storage.backend.read(name))
            content[int(acc / 100 * (len(content) - 1))] ^= 1
            storage.backend.write(name, bytes(content))
    assert read_all(storage) == read_singly(storage, monkeypatch)


def run_between(monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[], None]) -> Callable[[], int]:
    """Makes a change before the operation with this number on the storage; gives the number of operations."""
    done = 0

    def wrap(name: str) -> None:
        operation = getattr(Folder, name)

        def wrapped(self: Folder, *given: Any) -> Any:
            nonlocal done
            done += 1
            if done == at:
                change()
            return operation(self, *given)

        monkeypatch.setattr(Folder, name, wrapped)

    for name in ("read", "list_files", "write"):
        wrap(name)
    return lambda: done


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_reader_sees_each_trial_once_while_others_write_and_copy(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, is_copied: bool
) -> None:
    if is_copied:
        store.compact(storage)
    write(storage, MANY)

    def change() -> None:
        change_by = Storage.at(storage.backend.address)
        for number in (0, 7, MANY):  # the same sizes, other numbers
            write(change_by, number, 60.0)
        store.compact(change_by)

    at, operations = 1, 1
    while at <= operations:
        for number in (0, 7, MANY):
            write(storage, number)
        with monkeypatch.context() as patch:
            count = run_between(patch, at, change)
            rows = store.read_trials(storage)
            operations = count()
        assert [record.no for record in rows] == list(range(MANY + 1))
        assert {record.acc for record in rows} <= {50.0, 60.0}
        at += 1
    assert operations > 1


def test_a_file_that_changes_while_it_is_copied_is_left_out(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    at, operations = 1, 1
    while at <= operations:
        write(storage, 3)
        storage.backend.delete(storage.copied(storage.trial_rows))
        with monkeypatch.context() as patch:
            count = run_between(patch, at, lambda: write(Storage.at(storage.backend.address), 3, 60.0))
            store.compact(storage)
            operations = count()
        assert store.read_trials(storage)[3].acc == (60.0 if at <= operations else 50.0)
        at += 1
    assert operations > MANY


def test_another_process_that_copies_is_left_to_do_it(storage: Storage) -> None:
    lease = acquire(storage, "copy-trials")
    assert lease
    with lease:
        store.compact(storage)
        assert storage.backend.stat(storage.copied(storage.trial_rows)) is None
    store.compact(storage)
    assert storage.backend.stat(storage.copied(storage.trial_rows))


def test_a_copy_that_lacks_a_column_is_not_used(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    store.compact(storage)
    path = Path(storage.backend.address, storage.copied(storage.trial_rows))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["threads"]), path)  # as an earlier version wrote it
    assert count_reads(storage, monkeypatch) == MANY + 1
    store.compact(storage)
    assert count_reads(storage, monkeypatch) == 1


def test_a_damaged_file_of_a_trial_is_not_copied(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.backend.write(storage.trial_row(f"{4:012x}"), b"nothing")
    store.compact(storage)
    assert len(compaction.read_copied(storage, storage.trial_rows, list_rows(storage), {"acc": "float"})) == MANY - 1
    assert store.read_states(storage)[f"{4:012x}"] is State.RUNNING


def list_rows(storage: Storage) -> list[Any]:
    return storage.backend.list_files(storage.trial_rows)


def test_a_file_of_the_same_size_and_time_is_taken_from_the_copy(storage: Storage) -> None:
    """What identifies a file: without its time of change, a row that is written again would not be noticed."""
    store.compact(storage)
    name = storage.trial_row(f"{2:012x}")
    entry = storage.backend.stat(name)
    assert entry
    write(storage, 2, 60.0)
    assert store.read_trials(storage)[2].acc == 60.0
    os.utime(Path(storage.backend.address, name), (entry.modified, entry.modified))
    assert storage.backend.stat(name) == entry and store.read_trials(storage)[2].acc == 50.0


def test_a_bucket_has_a_copy_too(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Storage.at(s3_address)
    bucket.prepare()
    for number in range(MANY):
        write(bucket, number)
    before = store.read_trials(bucket)
    store.compact(bucket)
    found = compaction.read_copied(bucket, bucket.trial_rows, list_rows(bucket), {"acc": "float"})
    assert len(found) == MANY and store.read_trials(bucket) == before
