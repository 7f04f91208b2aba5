"""Warns about files in a storage that kdctl did not write, and about files that are missing there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

from orchestrator.errors import StorageError
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.backend import Entry
from orchestrator.storage.layout import Storage
from orchestrator.text import printable

_MOST_NAMES = 8  # in one warning


def find_foreign(storage: Storage) -> list[str]:
    """Returns at most one warning, about files that kdctl did not write; every reader ignores them.

    Raises StorageError if the storage cannot be read.
    """
    return _warn_of_foreign(storage, _list_entries(storage))


def find_missing(
    storage: Storage, trial_ids: Collection[str] | None = None, *, look_for_weights: bool = True
) -> list[str]:
    """Returns the warning of `find_foreign`, and warnings about missing files of finished trials, all or those given.

    It always looks for epochs, and for weights if `look_for_weights`. Raises StorageError if the storage cannot be
    read.
    """
    entries = _list_entries(storage)
    sizes = {entry.name: entry.size for entry in entries}
    ids = [_read_stem(entry) for entry in entries if entry.name == storage.trial_row(_read_stem(entry))]
    considered = set(ids if trial_ids is None else trial_ids)
    ids = [trial_id for trial_id in ids if trial_id in considered and storage.is_ours(storage.trial_row(trial_id))]
    epochs = [trial_id for trial_id in ids if not sizes.get(storage.trial_epochs(trial_id))]
    weights = [trial_id for trial_id in ids if look_for_weights and not sizes.get(storage.weights(trial_id))]
    finished = set(_filter_finished(storage, sorted({*epochs, *weights})))
    found = _warn_of_foreign(storage, entries)
    if without := [trial_id for trial_id in weights if trial_id in finished]:
        name = storage.weights(without[0])
        found.append(
            f"warning: {_name_trials(without)} finished, but the weights are missing ({_abridge(name, without)}); "
            "the next launch trains them again"
        )
    if without := [trial_id for trial_id in epochs if trial_id in finished and trial_id not in weights]:
        name = storage.trial_epochs(without[0])
        found.append(
            f"warning: {_name_trials(without)} finished, but the epochs are missing ({_abridge(name, without)}), so "
            f"there are no curves; the results are complete. To train such a trial again, remove "
            f"{storage.trial_row(without[0])} and launch its study"
        )
    return found


def _list_entries(storage: Storage) -> list[Entry]:
    return [entry for folder in storage.folders for entry in storage.backend.list_files(folder)]


def _read_stem(entry: Entry) -> str:
    return PurePosixPath(entry.name).stem


def _warn_of_foreign(storage: Storage, entries: Sequence[Entry]) -> list[str]:
    names = [entry.name for entry in entries if not storage.is_ours(entry.name)]
    if not names:
        return []
    listed = ", ".join(printable(name) for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    what = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
    where = printable(storage.backend.describe(""))
    return [f"warning: {what} not kdctl's and passed over: {listed}{more}, in {where}; remove what nobody needs"]


def _filter_finished(storage: Storage, trial_ids: list[str]) -> Iterator[str]:
    """Keeps the trials whose row is that of a finished trial with weights; whoever reads a damaged row reports it."""
    for trial_id in trial_ids:
        try:
            row = store.read_trial(storage, trial_id)
        except StorageError:
            continue
        if row and row.state is State.FINISHED and row.weights_sha256:
            yield trial_id


def _name_trials(trial_ids: Sequence[str]) -> str:
    more = f" and {len(trial_ids) - _MOST_NAMES:,} more" if len(trial_ids) > _MOST_NAMES else ""
    listed = ", ".join(trial_ids[:_MOST_NAMES]) + more
    return f"trial {listed} is" if len(trial_ids) == 1 else f"trials {listed} are"


def _abridge(name: str, trial_ids: Sequence[str]) -> str:
    return name if len(trial_ids) == 1 else f"{name}, …"
