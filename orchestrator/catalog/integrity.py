"""What a storage holds that it should not, and what it lacks: warnings for every command that reads one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

from orchestrator.errors import StorageError
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage.backend import Entry
from orchestrator.storage.layout import Storage
from orchestrator.text import printable

_SHOWN = 8  # names in one warning


def find_foreign(storage: Storage) -> list[str]:
    """At most one warning, which names the files that kdctl did not write; every reader passes over them.

    Raises StorageError where the storage cannot be read.
    """
    return _foreign(storage, _listed(storage))


def find_missing(
    storage: Storage, trial_ids: Collection[str] | None = None, *, look_for_weights: bool = True
) -> list[str]:
    """The warning of `find_foreign`, and others of what finished trials lack: the given ones, or all.

    Epochs are always looked for, weights where that is of interest.
    Raises StorageError where the storage cannot be read.
    """
    entries = _listed(storage)
    sizes = {entry.name: entry.size for entry in entries}
    ids = [_stem(entry) for entry in entries if entry.name == storage.trial_row(_stem(entry))]
    wanted = set(ids if trial_ids is None else trial_ids)
    ids = [trial_id for trial_id in ids if trial_id in wanted and storage.is_ours(storage.trial_row(trial_id))]
    epochs = [trial_id for trial_id in ids if not sizes.get(storage.trial_epochs(trial_id))]
    weights = [trial_id for trial_id in ids if look_for_weights and not sizes.get(storage.weights(trial_id))]
    finished = set(_finished(storage, sorted({*epochs, *weights})))
    found = _foreign(storage, entries)
    if without := [trial_id for trial_id in weights if trial_id in finished]:
        name = storage.weights(without[0])
        found.append(
            f"warning: {_trials(without)} finished, but the weights are missing ({_and_so_on(name, without)}); the "
            "next launch trains again what lacks them"
        )
    if without := [trial_id for trial_id in epochs if trial_id in finished and trial_id not in weights]:
        name = storage.trial_epochs(without[0])
        found.append(
            f"warning: {_trials(without)} finished, but the epochs are missing ({_and_so_on(name, without)}), so there "
            f"are no curves; the results are whole. To train such a trial again, remove "
            f"{storage.trial_row(without[0])} and launch its study"
        )
    return found


def _listed(storage: Storage) -> list[Entry]:
    return [entry for folder in storage.folders for entry in storage.backend.list_files(folder)]


def _stem(entry: Entry) -> str:
    return PurePosixPath(entry.name).stem


def _foreign(storage: Storage, entries: Sequence[Entry]) -> list[str]:
    names = [entry.name for entry in entries if not storage.is_ours(entry.name)]
    if not names:
        return []
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    what = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
    where = printable(storage.backend.describe(""))
    return [f"warning: {what} not kdctl's and passed over: {shown}{more}, in {where}; remove what nobody needs"]


def _finished(storage: Storage, trial_ids: list[str]) -> Iterator[str]:
    """Those whose row says so, and what their weights are; a damaged row is named by whoever reads it."""
    for trial_id in trial_ids:
        try:
            row = store.read_trial(storage, trial_id)
        except StorageError:
            continue
        if row and row.state is State.FINISHED and row.weights_sha256:
            yield trial_id


def _trials(trial_ids: Sequence[str]) -> str:
    more = f" and {len(trial_ids) - _SHOWN:,} more" if len(trial_ids) > _SHOWN else ""
    shown = ", ".join(trial_ids[:_SHOWN]) + more
    return f"trial {shown} is" if len(trial_ids) == 1 else f"trials {shown} are"


def _and_so_on(name: str, trial_ids: Sequence[str]) -> str:
    return name if len(trial_ids) == 1 else f"{name}, …"
