"""The results: the schema of the two Parquet tables, writing rows and reading them back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any, TypeVar

from orchestrator import parquet
from orchestrator.data.registry import DATASETS
from orchestrator.errors import StorageError
from orchestrator.records import EpochRecord, Failure, State, TrialRecord
from orchestrator.storage.layout import Storage

SCHEMA_VERSION = "2"

# name → (type, meaning); the first eleven are the published table's.
TRIAL_COLUMNS: Mapping[str, tuple[str, str]] = {
    "no": ("int", "number of the trial in the plan it was trained for, from 1"),
    "method": ("string", "base, logit or st"),
    "dataset": ("string", f"{', '.join(DATASETS)}; a folder's name and the first digits of its digest"),
    "student": ("string", "the model that was trained"),
    "teacher": ("string", "the teacher's model; null without one"),
    "start_time": ("timestamp", "when training began, UTC"),
    "acc": ("float", "best test accuracy of all epochs, %: picked on the test set, as is customary"),
    "epoch": ("int", "the first epoch that reached acc, from 1"),
    "nepoch": ("int", "epochs to train; 0 for a teacher from a file"),
    "lr": ("float", "learning rate at the start"),
    "batch_size": ("int", "images in a batch"),
    "trial_id": ("string", "12 hex digits over everything that can change the result"),
    "study": ("string", "the study it was trained for first"),
    "state": ("string", "running, stopped, finished, failed or skipped"),
    "error": ("string", "why it failed, was skipped or stopped, and what to do; null otherwise"),
    "failure": ("string", "class of a failure: lost_worker, out_of_memory, storage, diverged, teacher, data or error"),
    "seed": ("int", "seed of the weights, the order of the images and their views"),
    "last_acc": ("float", "test accuracy after the last epoch, %: no pick on the test set"),
    "selected_acc": ("float", "test accuracy at the epoch with the best val_acc, %; null without a holdout"),
    "top5": ("float", "share of test images with the label among the 5 best answers, last epoch, %"),
    "teacher_id": ("string", "trial_id of the teacher; null without one"),
    "teacher_acc": ("float", "test accuracy of the weights that taught, %"),
    "agreement": ("float", "share of test images on which student and teacher answer alike, last epoch, %"),
    "params": ("int", "trained parameters of the student"),
    "seconds": ("float", "wall time of all epochs, evaluation included"),
    "images_per_second": ("float", "training images a second, evaluation excluded"),
    "device": ("string", "what it was trained on"),
    "host": ("string", "the machine's name"),
    "recipe": ("string", "every other setting, the teacher's included, as JSON"),
    "kdctl_version": ("string", "version of kdctl"),
    "torch_version": ("string", "version of torch"),
    "ray_version": ("string", "version of Ray; null with --inline"),
    "git_commit": ("string", "commit of the repository that holds the study file; null outside one"),
    "end_time": ("timestamp", "when it ended, in whatever state, UTC; null while it runs"),
    "resumed": ("int", "how many times it went on from a checkpoint"),
    "weights_bytes": ("int", "size of its weights file; null without one"),
    "weights_sha256": ("string", "SHA-256 of its weights file; null without one"),
}

EPOCH_COLUMNS: Mapping[str, tuple[str, str]] = {
    "trial_id": ("string", "the trial"),
    "epoch": ("int", "from 1"),
    "lr": ("float", "learning rate in this epoch"),
    "train_loss": ("float", "what was minimised, mean over the training images"),
    "ce_loss": ("float", "its cross-entropy, before any weight"),
    "kd_loss": ("float", "its distillation term; null without a teacher"),
    "train_acc": ("float", "accuracy on the training views while training, %"),
    "test_loss": ("float", "cross-entropy on the test set"),
    "test_acc": ("float", "accuracy on the test set, %"),
    "val_acc": ("float", "accuracy on the held-out images, %; null without a holdout"),
    "seconds": ("float", "wall time of the epoch, evaluation included"),
    "images_per_second": ("float", "training images a second, evaluation excluded"),
}

_Row = TypeVar("_Row")
_FACTS = {"kdctl_schema": SCHEMA_VERSION}
_FEW = 16  # trials up to which their files are asked for by name; for more, a listing says which there are


def types_of(columns: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Columns of a table without what they mean: name → type."""
    return {name: kind for name, (kind, _) in columns.items()}


def write_trial(storage: Storage, record: TrialRecord) -> None:
    """Writes a trial's row, in place of an earlier one."""
    content = parquet.to_parquet(types_of(TRIAL_COLUMNS), [asdict(record)], _FACTS)
    storage.place.write(storage.trial_row(record.trial_id), content)


def write_epochs(storage: Storage, trial_id: str, epochs: Iterable[EpochRecord]) -> None:
    """Writes all epochs that a trial has so far."""
    rows = [{"trial_id": trial_id, **asdict(epoch)} for epoch in epochs]
    storage.place.write(storage.trial_epochs(trial_id), parquet.to_parquet(types_of(EPOCH_COLUMNS), rows, _FACTS))


def read_trials(storage: Storage, trial_ids: Collection[str] | None = None) -> list[TrialRecord]:
    """The rows of the given trials, or of all; trials without a row are left out.

    Raises StorageError that names a damaged file.
    """
    return _read(storage, storage.trial_rows, trial_ids, TRIAL_COLUMNS, _record)


def _record(row: dict[str, Any]) -> TrialRecord:
    try:
        failure = None if row["failure"] is None else Failure(row["failure"])
        return TrialRecord(**{**row, "state": State(row["state"]), "failure": failure})
    except ValueError as error:
        raise parquet.UnreadableFile(f"holds a row of another kind ({error})") from None


def read_trial(storage: Storage, trial_id: str) -> TrialRecord | None:
    """The row of one trial, or None. Raises StorageError where its file is damaged."""
    return next(iter(read_trials(storage, [trial_id])), None)


def read_epochs(storage: Storage, trial_ids: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The epochs of the given trials, or of all, as rows with the columns of `EPOCH_COLUMNS`.

    Raises StorageError that names a damaged file.
    """
    return _read(storage, storage.epoch_rows, trial_ids, EPOCH_COLUMNS, dict)


def epoch_columns(
    storage: Storage, trial_ids: Collection[str], names: Collection[str]
) -> dict[str, dict[str, list[Any]]]:
    """Some columns of the epochs of each of the given trials that has any: trial id → column → values.

    For long studies many times as fast as `read_epochs`. Raises StorageError that names a damaged file.
    """
    types = {name: EPOCH_COLUMNS[name][0] for name in names}
    found: dict[str, dict[str, list[Any]]] = {}
    for name, content in _contents(storage, _names(storage, storage.epoch_rows, trial_ids)):
        with _naming(storage, name):
            found[PurePosixPath(name).stem] = parquet.columns(parquet.table_from_parquet(content, types))
    return found


def trials_table(storage: Storage) -> parquet.Table:
    """The rows of all trials as an Arrow table with the columns of `TRIAL_COLUMNS`.

    Raises StorageError that names a damaged file.
    """
    return _joined(_tables(storage, storage.trial_rows, None, TRIAL_COLUMNS), TRIAL_COLUMNS)


def table_of(rows: Iterable[TrialRecord]) -> parquet.Table:
    """Rows that are at hand as such a table."""
    return parquet.table_of(types_of(TRIAL_COLUMNS), map(asdict, rows))


def epochs_table(storage: Storage) -> parquet.Table:
    """The epochs of all trials as an Arrow table with the columns of `EPOCH_COLUMNS`.

    Raises StorageError that names a damaged file.
    """
    return _joined(_tables(storage, storage.epoch_rows, None, EPOCH_COLUMNS), EPOCH_COLUMNS)


def read_states(storage: Storage, trial_ids: Collection[str] | None = None) -> dict[str, State]:
    """The state of each trial that has a row. A finished one without whole weights counts as running: not done.

    A damaged row counts as running too, so that the next launch mends it.
    """
    states: dict[str, State] = {}
    sizes: dict[str, int | None] = {}
    for name, content in _contents(storage, _names(storage, storage.trial_rows, trial_ids)):
        trial_id = PurePosixPath(name).stem
        try:
            row = parquet.from_parquet(content, {"state": "string", "weights_bytes": "int"})[0]
            states[trial_id] = State(row["state"])
            sizes[trial_id] = row["weights_bytes"]
        except (parquet.UnreadableFile, IndexError, ValueError):
            states[trial_id] = State.RUNNING
    finished = [trial_id for trial_id, state in states.items() if state is State.FINISHED]
    for trial_id, size in zip(finished, storage.place.sizes(list(map(storage.weights, finished))), strict=True):
        if size is None or size != sizes[trial_id]:
            states[trial_id] = State.RUNNING
    return states


def _names(storage: Storage, folder: str, trial_ids: Collection[str] | None) -> list[str]:
    if trial_ids is not None and len(trial_ids) <= _FEW:
        return [f"{folder}/{trial_id}.parquet" for trial_id in trial_ids]
    names = [entry.name for entry in storage.place.entries(folder) if storage.is_ours(entry.name)]
    if trial_ids is None:
        return names
    found = set(names)
    return [name for name in (f"{folder}/{trial_id}.parquet" for trial_id in trial_ids) if name in found]


def _contents(storage: Storage, names: list[str]) -> Iterable[tuple[str, bytes]]:
    """Each file that there is with its content; a bucket answers slowly, but many questions at once."""
    if len(names) <= 1:
        contents: Iterable[bytes | None] = (_content(storage, name) for name in names)
        yield from _present(names, contents)
        return
    with ThreadPoolExecutor(16) as pool:
        yield from _present(names, pool.map(partial(_content, storage), names))


def _present(names: list[str], contents: Iterable[bytes | None]) -> Iterable[tuple[str, bytes]]:
    return ((name, content) for name, content in zip(names, contents, strict=True) if content is not None)


def _content(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.place.read(name)
    except FileNotFoundError:  # it never was there, or went while we looked
        return None


def _read(
    storage: Storage,
    folder: str,
    trial_ids: Collection[str] | None,
    columns: Mapping[str, tuple[str, str]],
    make: Callable[[dict[str, Any]], _Row],
) -> list[_Row]:
    tables = _tables(storage, folder, trial_ids, columns)
    try:  # all at once takes half the time
        return list(map(make, parquet.rows(_joined(tables, columns))))
    except parquet.UnreadableFile:
        return [row for name, table in tables.items() for row in _made(storage, name, table, make)]


def _made(storage: Storage, name: str, table: parquet.Table, make: Callable[[dict[str, Any]], _Row]) -> list[_Row]:
    with _naming(storage, name):
        return list(map(make, parquet.rows(table)))


def _tables(
    storage: Storage, folder: str, trial_ids: Collection[str] | None, columns: Mapping[str, tuple[str, str]]
) -> dict[str, parquet.Table]:
    """The table in each file."""
    types, tables = types_of(columns), {}
    for name, content in _contents(storage, _names(storage, folder, trial_ids)):
        with _naming(storage, name):
            tables[name] = parquet.table_from_parquet(content, types)
            if parquet.distinct(tables[name], "trial_id") not in ([], [PurePosixPath(name).stem]):
                raise parquet.UnreadableFile("holds rows of another trial")
    return tables


def _joined(tables: Mapping[str, parquet.Table], columns: Mapping[str, tuple[str, str]]) -> parquet.Table:
    return parquet.joined(list(tables.values()), types_of(columns))


@contextmanager
def _naming(storage: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except parquet.UnreadableFile as error:
        raise StorageError(f"{storage.place.shown(name)} {error}; {_advice(storage, name)}") from None


def _advice(storage: Storage, name: str) -> str:
    """What to do about a damaged file."""
    trial_id = PurePosixPath(name).stem
    again = "launch its study again, which trains this trial again, from its last checkpoint where there is one"
    if name == storage.trial_row(trial_id) or read_states(storage, [trial_id]).get(trial_id) is not State.FINISHED:
        return again
    row = storage.place.shown(storage.trial_row(trial_id))
    return (
        "its trial is finished, and the results are whole: remove this file to go on without its curves, or also "
        f"remove {row} and launch its study again, which trains it again"
    )
