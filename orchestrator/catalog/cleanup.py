"""Finds and removes what no launch needs any more: checkpoints, teacher tables, leftovers of interrupted programs.

Names come only from a listing of the storage, and a file is removed only if `Storage` defines its name. The content of
a file can be a reason to keep files, never a reason to remove one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from orchestrator.columns import table
from orchestrator.errors import KdctlError, StorageError
from orchestrator.files import PART
from orchestrator.records import State, TableKey, is_trial_id
from orchestrator.results import store
from orchestrator.storage.backend import MARKER, Entry, StorageBackend
from orchestrator.storage.layout import CHECKPOINTS_KEPT, FileKind, Storage, StoredFile, read_json
from orchestrator.storage.leases import EXPIRES, Holder, Lease, acquire, table_resource, trial_resource
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan
from orchestrator.text import format_size

STALE = 3600.0  # seconds; an unfinished file that is older than this has no writer any more
_FILES_OF_TRIALS = (FileKind.WEIGHTS, FileKind.TRIAL_EPOCHS, FileKind.CHECKPOINT)  # of no use without its row


class GarbageKind(StrEnum):
    """Why a file can be removed."""

    FINISHED = "finished_checkpoints"
    OLD = "old_checkpoints"
    ORPHAN = "orphans"
    HALF = "half_tables"
    TABLE = "unused_tables"
    SLICE = "unused_slices"
    PART = "unfinished_files"
    CLAIM = "dead_claims"


_TITLES = {
    GarbageKind.FINISHED: "checkpoints of finished trials",
    GarbageKind.OLD: f"checkpoints before the last {CHECKPOINTS_KEPT} of unfinished trials",
    GarbageKind.ORPHAN: "checkpoints, weights and epochs without a trial",
    GarbageKind.HALF: "tables without facts, facts without a table",
    GarbageKind.TABLE: "teacher tables that no plan uses",
    GarbageKind.SLICE: "slices of teacher tables that no plan uses, or that are whole",
    GarbageKind.PART: "unfinished files older than an hour",
    GarbageKind.CLAIM: "claims of launches that are dead",
}


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that can be removed. `guard` names the lease that its writer holds, if there is one."""

    kind: GarbageKind
    entry: Entry
    guard: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs."""
        return {"kind": self.kind, "name": self.entry.name, "bytes": self.entry.size}


# Finding.


def find(storage: Storage, plans: Sequence[Plan] = ()) -> list[Garbage]:
    """Finds every file that can be removed, and removes nothing. Tables of `plans` stay, like those of stored plans.

    Raises StorageError if the storage cannot be read, or a plan in it is damaged.
    """
    return [*_find_trial_files(storage), *_find_tables(storage, plans), *_find_leftovers(storage)]


def _find_trial_files(storage: Storage) -> Iterator[Garbage]:
    folders = (storage.checkpoints_folder, storage.weights_folder, storage.epoch_rows)
    entries = [entry for folder in folders for entry in storage.backend.list_files(folder)]
    # Rows are listed last: a trial writes its row first, so one that starts now is not taken for one without a row.
    rows = {
        _read_stem(entry) for entry in storage.backend.list_files(storage.trial_rows) if storage.is_ours(entry.name)
    }
    checkpoints: dict[str, list[Entry]] = {}
    for entry in entries:
        file = _parse(storage, entry)
        if file is None or file.kind not in _FILES_OF_TRIALS:
            continue
        if file.trial_id not in rows:
            yield Garbage(GarbageKind.ORPHAN, entry, trial_resource(file.trial_id))
        elif file.kind is FileKind.CHECKPOINT:
            checkpoints.setdefault(file.trial_id, []).append(entry)
    states = store.read_states(storage, list(checkpoints))
    for owner, own in checkpoints.items():
        is_finished = states.get(owner) is State.FINISHED
        for entry in own if is_finished else own[:-CHECKPOINTS_KEPT]:
            yield Garbage(GarbageKind.FINISHED if is_finished else GarbageKind.OLD, entry, trial_resource(owner))


def _read_stem(entry: Entry) -> str:
    return PurePosixPath(entry.name).stem


def _parse(storage: Storage, entry: Entry) -> StoredFile | None:
    """Says what a file is; None if no trial with a complete id can have written it."""
    file = storage.parse(entry.name)
    return file if file and is_trial_id(file.trial_id) else None


def _find_tables(storage: Storage, plans: Sequence[Plan]) -> Iterator[Garbage]:
    found: dict[str, tuple[Entry, TableKey]] = {}
    slices: list[tuple[Entry, TableKey]] = []
    for entry in storage.backend.list_files(storage.tables_folder):
        file = _parse(storage, entry)
        if file and file.table and file.kind is FileKind.TABLE_SLICE:
            slices.append((entry, file.table))
        elif file and file.table:
            found[entry.name] = entry, file.table
    used = _read_used_tables(storage, plans) if found or slices else set()
    for entry, key in slices:
        if key not in used or storage.table_facts(key) in found:
            yield Garbage(GarbageKind.SLICE, entry, table_resource(key))
    for entry, key in found.values():
        guard = table_resource(key)
        if storage.table(key) not in found or storage.table_facts(key) not in found:
            yield Garbage(GarbageKind.HALF, entry, guard)
        elif key not in used:
            yield Garbage(GarbageKind.TABLE, entry, guard)


def _read_used_tables(storage: Storage, plans: Sequence[Plan]) -> set[TableKey]:
    """Reads which tables unfinished trials use, in `plans` and in the plans that the storage holds."""
    users = [(trial.trial_id, table) for plan in plans for trial in plan.trials for table in trial.tables()]
    for entry in filter(lambda entry: storage.is_ours(entry.name), storage.backend.list_files(storage.plans)):
        users += stored_studies.read_table_keys(storage, entry.name)
    states = store.read_states(storage, sorted({trial_id for trial_id, _ in users}))
    return {key for trial_id, key in users if states.get(trial_id) is not State.FINISHED}


def _find_leftovers(storage: Storage) -> Iterator[Garbage]:
    parts = [
        entry
        for entry in storage.backend.list_unfinished()
        if storage.has_folder(str(PurePosixPath(entry.name).parent))
    ]
    claims = storage.backend.list_files(storage.leases)
    if not parts and not claims:
        return
    now = read_clock(storage.backend)
    yield from (Garbage(GarbageKind.PART, entry) for entry in parts if now - entry.modified > STALE)
    yield from (Garbage(GarbageKind.CLAIM, entry) for entry in claims if _is_dead(storage, entry, now))


def _is_dead(storage: Storage, claim: Entry, now: float) -> bool:
    facts = read_json(storage, claim.name)
    try:
        is_gone = Holder(*(facts[name] for name in Holder.__slots__)).is_gone()
    except (TypeError, KeyError):  # damaged: it may be a live launch's, until it is old
        is_gone = False
    return is_gone or now - claim.modified > EXPIRES


def read_clock(backend: StorageBackend) -> float:
    """Reads the clock of a storage, in seconds: writes a file, reads its time, and removes the file.

    Raises StorageError if that fails.
    """
    name = f"{PART}clock-{secrets.token_hex(6)}"  # every reader of a storage ignores such a name
    backend.write(name, b"kdctl")
    try:
        entry = backend.stat(name)
    finally:
        backend.delete(name)
    if entry is None:
        raise StorageError(
            f"{backend.describe(name)} is not there after it was written; expected a storage that keeps what is "
            "written; fix it, or name another with --storage"
        )
    return entry.modified


# Removing.


def free(storage: Storage, plans: Sequence[Plan] = ()) -> list[Garbage]:
    """Removes what `find` finds, and returns what it removed; it keeps a file that has changed since, or is in use.

    Raises KdctlError while a launch or another clean runs, and StorageError if the folder is no storage or a file
    cannot be removed; the files that remain are then unchanged.
    """
    # Why a launch may start in the middle of this: a process that writes one of these files holds the lease of its
    # trial or table. This function takes the same lease to remove a file, and then checks that the file is still the
    # one that was found, so it never removes what was just written: neither weights beside a new row, nor a table whose
    # facts are still missing. Nobody reads checkpoints before the last two, or those of a finished trial. Tables are
    # read without a lease, facts first. They are removed facts first too, and before the table itself this function
    # looks for launches once more: a launch that read the facts had its own lease before that, so it is found. A table
    # that a new plan names is built again. Unfinished files have no lease, but their writer has been idle for an hour,
    # and there is no live launch.
    if storage.backend.stat(MARKER) is None:
        if not storage.backend.list_files("."):
            return []
        raise StorageError(
            f"{storage.backend.address!r} is no storage of kdctl, its {MARKER} is missing; expected one that a "
            "launch has used; check the folder and its mount, or name another with --storage"
        )
    lease = acquire(storage, "clean")
    if lease is None:
        raise KdctlError(
            f"another clean ({_name_other_clean(storage)}) deletes files of this storage now; wait until it has ended"
        )
    with lease:
        leftovers = list(_find_leftovers(storage))  # first: the search for live launches removes dead claims
        _refuse_launches(storage, lease)
        return _remove(storage, lease, [*_find_trial_files(storage), *_find_tables(storage, plans), *leftovers])


def _name_other_clean(storage: Storage) -> str:
    return str(Lease(storage, "clean", None).find_holder("clean") or "which has just ended")


def _refuse_launches(storage: Storage, lease: Lease) -> None:
    live = lease.find_holders("launch-").values()
    if live:
        raise KdctlError(
            f"storage {storage.backend.address!r} is in use: {', '.join(map(str, live))} runs a launch; files can be "
            "deleted only while no launch runs; wait until it has ended, or stop it, then clean again"
        )


def _remove(storage: Storage, lease: Lease, pieces: list[Garbage]) -> list[Garbage]:
    freed: list[Garbage] = []
    try:
        for guard, group in groupby(sorted(pieces, key=_read_guard), key=_read_guard):
            lease.check()
            _remove_guarded(storage, lease, guard, group, freed)
        lease.sweep()
        freed += [
            piece for piece in pieces if piece.kind is GarbageKind.CLAIM and not storage.backend.stat(piece.entry.name)
        ]
    except KdctlError as error:
        raise type(error)(f"{error} ({len(freed)} of {len(pieces)} files were freed, the rest is as it was)") from None
    return freed


def _read_guard(piece: Garbage) -> str:
    return piece.guard


def _remove_guarded(
    storage: Storage, lease: Lease, guard: str, pieces: Iterable[Garbage], freed: list[Garbage]
) -> None:
    """Removes what can still be removed, while it holds their lease; nothing if another process holds it."""
    held = acquire(storage, guard) if guard else None
    if guard and held is None:
        return
    with held or nullcontext():
        for piece in pieces:
            if piece.kind is not GarbageKind.CLAIM and _can_remove(storage, piece):  # leases sweep claims themselves
                _refuse_launches(storage, lease)
                storage.backend.delete(piece.entry.name)
                freed.append(piece)


def _can_remove(storage: Storage, piece: Garbage) -> bool:
    """Whether a file is still the one that was found, and a trial that had no row still has none."""
    found = storage.backend.stat(piece.entry.name)
    # A bucket reports fractions of a second only in its listing.
    is_same = found and found.size == piece.entry.size and abs(found.modified - piece.entry.modified) < 1
    return bool(is_same) and not (piece.kind is GarbageKind.ORPHAN and _has_row(storage, piece))


def _has_row(storage: Storage, piece: Garbage) -> bool:
    file = storage.parse(piece.entry.name)
    return file is not None and storage.backend.stat(storage.trial_row(file.trial_id)) is not None


# Formatting.


def format_garbage(pieces: Sequence[Garbage], width: int | None = None) -> str:
    """Formats the number and size of files of each kind as a table, for a terminal of `width` columns or any width."""
    rows = []
    for kind, title in _TITLES.items():
        sizes = [piece.entry.size for piece in pieces if piece.kind is kind]
        if sizes:
            rows.append((title, f"{len(sizes):,}", format_size(sum(sizes))))
    rows.append(("in all", f"{len(pieces):,}", format_size(count_bytes(pieces))))
    return table(("what", "files", "size"), rows, width)


def count_bytes(pieces: Sequence[Garbage]) -> int:
    """Adds up their sizes, in bytes."""
    return sum(piece.entry.size for piece in pieces)


def describe_total(pieces: Sequence[Garbage]) -> str:
    """Describes how many files these are and how large, as in `2 files, 3.1 MB`."""
    return f"{len(pieces):,} file{'' if len(pieces) == 1 else 's'}, {format_size(count_bytes(pieces))}"
