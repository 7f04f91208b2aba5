"""The results: the schema of the two Parquet tables, writing rows and reading them back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

from orchestrator import parquet
from orchestrator.errors import StorageError
from orchestrator.records import EpochRecord, State, TrialRecord, columns_of, read_recipe
from orchestrator.storage import compaction
from orchestrator.storage.layout import Storage

SCHEMA_VERSION = "2"

# name → (type, meaning); the first eleven of the trials are the columns of the published table.
TRIAL_COLUMNS: Mapping[str, tuple[str, str]] = columns_of(TrialRecord)
EPOCH_COLUMNS: Mapping[str, tuple[str, str]] = {"trial_id": ("string", "the trial"), **columns_of(EpochRecord)}

_Row = TypeVar("_Row")
_FACTS = {"kdctl_schema": SCHEMA_VERSION}
_FEW = 16  # trials; for at most this many each file is read by name, for more the folder is listed first


def types_of(columns: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The types of the columns of a table: name → type."""
    return {name: kind for name, (kind, _) in columns.items()}


def write_trial(storage: Storage, record: TrialRecord) -> None:
    """Writes a trial's row, in place of an earlier one."""
    content = parquet.to_parquet(types_of(TRIAL_COLUMNS), [record.to_row()], _FACTS)
    storage.backend.write(storage.trial_row(record.trial_id), content)


def write_epochs(storage: Storage, trial_id: str, epochs: Iterable[EpochRecord]) -> None:
    """Writes all epochs that a trial has so far."""
    rows = [{"trial_id": trial_id, **asdict(epoch)} for epoch in epochs]
    storage.backend.write(storage.trial_epochs(trial_id), parquet.to_parquet(types_of(EPOCH_COLUMNS), rows, _FACTS))


def read_trials(storage: Storage, trial_ids: Collection[str] | None = None) -> list[TrialRecord]:
    """Reads the rows of the given trials, or of all; trials without a row are left out.

    Raises StorageError that names a damaged file.
    """
    return _read(storage, storage.trial_rows, trial_ids, TRIAL_COLUMNS, _record)


def _record(row: dict[str, Any]) -> TrialRecord:
    try:
        return TrialRecord.from_row(row)
    except ValueError as error:
        raise parquet.UnreadableFile(f"holds a damaged row ({error})") from None


def read_trial(storage: Storage, trial_id: str) -> TrialRecord | None:
    """The row of one trial, or None. Raises StorageError where its file is damaged."""
    return next(iter(read_trials(storage, [trial_id])), None)


def read_epochs(storage: Storage, trial_ids: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The epochs of the given trials, or of all, as rows with the columns of `EPOCH_COLUMNS`.

    Raises StorageError that names a damaged file.
    """
    return _read(storage, storage.epoch_rows, trial_ids, EPOCH_COLUMNS, dict)


def read_epoch_columns(
    storage: Storage, trial_ids: Collection[str], names: Collection[str]
) -> dict[str, dict[str, list[Any]]]:
    """Some columns of the epochs of each of the given trials that has any: trial id → column → values.

    For long studies many times as fast as `read_epochs`. Raises StorageError that names a damaged file.
    """
    types = {name: EPOCH_COLUMNS[name][0] for name in names}
    found: dict[str, dict[str, list[Any]]] = {}
    for name, table in _read_tables(storage, storage.epoch_rows, trial_ids, types, is_checked=False).items():
        with _name_in_errors(storage, name):
            found[PurePosixPath(name).stem] = parquet.columns(table)
    return found


def read_trials_table(storage: Storage) -> parquet.Table:
    """The rows of all trials as an Arrow table with the columns of `TRIAL_COLUMNS`.

    Raises StorageError that names a damaged file.
    """
    return _read_joined(storage, storage.trial_rows, types_of(TRIAL_COLUMNS))


def to_table(rows: Iterable[TrialRecord]) -> parquet.Table:
    """Converts rows to such a table."""
    return parquet.table_of(types_of(TRIAL_COLUMNS), [row.to_row() for row in rows])


def read_epochs_table(storage: Storage) -> parquet.Table:
    """The epochs of all trials as an Arrow table with the columns of `EPOCH_COLUMNS`.

    Raises StorageError that names a damaged file.
    """
    return _read_joined(storage, storage.epoch_rows, types_of(EPOCH_COLUMNS))


def compact(storage: Storage) -> None:
    """Copies rows into one file per table where there are many, see `compaction`. Raises StorageError."""
    for folder, columns in ((storage.trial_rows, TRIAL_COLUMNS), (storage.epoch_rows, EPOCH_COLUMNS)):
        types = types_of(columns)
        compaction.refresh(storage, folder, types, partial(_read_singly, storage, types))


def read_states(storage: Storage, trial_ids: Collection[str] | None = None) -> dict[str, State]:
    """The state of each trial that has a row. A finished trial without complete weights counts as running.

    A damaged row counts as running too, so that the next launch trains that trial again.
    """
    states: dict[str, State] = {}
    sizes: dict[str, int | None] = {}
    types = {"state": "string", "recipe": "string", "weights_bytes": "int"}
    for name, read in _list_readers(storage, storage.trial_rows, trial_ids, types):
        trial_id = PurePosixPath(name).stem
        try:
            row = parquet.rows(read())[0]
            read_recipe(row["recipe"])
            states[trial_id] = State(row["state"])
            sizes[trial_id] = row["weights_bytes"]
        except (parquet.UnreadableFile, IndexError, ValueError):
            states[trial_id] = State.RUNNING
    finished = [trial_id for trial_id, state in states.items() if state is State.FINISHED]
    for trial_id, size in zip(finished, storage.backend.read_sizes(list(map(storage.weights, finished))), strict=True):
        if size is None or size != sizes[trial_id]:
            states[trial_id] = State.RUNNING
    return states


def _list_readers(
    storage: Storage, folder: str, trial_ids: Collection[str] | None, types: Mapping[str, str]
) -> Iterator[tuple[str, Callable[[], parquet.Table]]]:
    """Yields each file, and a function that gives its table, or raises UnreadableFile."""
    names, copied = [f"{folder}/{trial_id}.parquet" for trial_id in trial_ids or ()], compaction.Tables()
    if trial_ids is None or len(trial_ids) > _FEW:
        entries = {entry.name: entry for entry in storage.backend.list_files(folder) if storage.is_ours(entry.name)}
        names = [name for name in names if name in entries] if trial_ids is not None else list(entries)
        copied = compaction.read_copied(storage, folder, [entries[name] for name in names], types)
    contents = _read_contents(storage, [name for name in names if name not in copied])
    single = next(contents, None)
    for name in names:
        if name in copied:
            yield name, partial(copied.__getitem__, name)
        elif single and single[0] == name:
            yield name, partial(parquet.table_from_parquet, single[1], types)
            single = next(contents, None)


def _read_contents(storage: Storage, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yields each existing file with its content; reads in parallel, because each request to a bucket is slow."""
    if len(names) <= 1:
        contents: Iterable[bytes | None] = (_read_content(storage, name) for name in names)
        yield from _drop_missing(names, contents)
        return
    with ThreadPoolExecutor(16) as pool:
        yield from _drop_missing(names, pool.map(partial(_read_content, storage), names))


def _drop_missing(names: list[str], contents: Iterable[bytes | None]) -> Iterable[tuple[str, bytes]]:
    return ((name, content) for name, content in zip(names, contents, strict=True) if content is not None)


def _read_content(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.backend.read(name)
    except FileNotFoundError:  # it never existed, or was deleted meanwhile
        return None


def _read(
    storage: Storage,
    folder: str,
    trial_ids: Collection[str] | None,
    columns: Mapping[str, tuple[str, str]],
    make: Callable[[dict[str, Any]], _Row],
) -> list[_Row]:
    types = types_of(columns)
    tables = _read_tables(storage, folder, trial_ids, types)
    try:  # converting all rows at once takes half the time
        return list(map(make, parquet.rows(parquet.join(list(tables.values()), types))))
    except parquet.UnreadableFile:
        return [row for name, table in tables.items() for row in _make_records(storage, name, table, make)]


def _make_records(
    storage: Storage, name: str, table: parquet.Table, make: Callable[[dict[str, Any]], _Row]
) -> list[_Row]:
    with _name_in_errors(storage, name):
        return list(map(make, parquet.rows(table)))


def _read_tables(
    storage: Storage,
    folder: str,
    trial_ids: Collection[str] | None,
    types: Mapping[str, str],
    *,
    is_checked: bool = True,
) -> compaction.Tables:
    """The table in each file; if `is_checked`, after a look whether it is that of the trial that it is named after."""
    tables = {}
    for name, read in _list_readers(storage, folder, trial_ids, types):
        with _name_in_errors(storage, name):
            tables[name] = read()
            if is_checked:
                _check_owner(name, tables[name])
    return tables


def _read_singly(storage: Storage, types: Mapping[str, str], names: Sequence[str]) -> compaction.Tables:
    """The tables in some files, but for damaged ones, which their readers report."""
    tables = {}
    for name, content in _read_contents(storage, list(names)):
        with suppress(parquet.UnreadableFile):
            table = parquet.table_from_parquet(content, types)
            _check_owner(name, table)
            tables[name] = table
    return tables


def _check_owner(name: str, table: parquet.Table) -> None:
    if parquet.distinct_values(table, "trial_id") not in ([], [PurePosixPath(name).stem]):
        raise parquet.UnreadableFile("holds rows of another trial")


def _read_joined(storage: Storage, folder: str, types: Mapping[str, str]) -> parquet.Table:
    return parquet.join(list(_read_tables(storage, folder, None, types).values()), types)


@contextmanager
def _name_in_errors(storage: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except parquet.UnreadableFile as error:
        raise StorageError(f"{storage.backend.describe(name)} {error}; {_advise(storage, name)}") from None


def _advise(storage: Storage, name: str) -> str:
    """What to do about a damaged file."""
    trial_id = PurePosixPath(name).stem
    advice = "launch its study again, which trains this trial again, from its last checkpoint where there is one"
    if name == storage.trial_row(trial_id) or read_states(storage, [trial_id]).get(trial_id) is not State.FINISHED:
        return advice
    row = storage.backend.describe(storage.trial_row(trial_id))
    return (
        "its trial is finished, and its results are complete: remove this file to continue without its curves, or also "
        f"remove {row} and launch its study again, which trains it again"
    )
