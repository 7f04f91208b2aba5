"""A copy of the rows of many trials in one Parquet file per table, because reading thousands of files is slow.

Each trial's own file stays, and stays the truth: the copy records its size and time of change, and a reader takes from
the copy only what it finds unchanged in a listing of the folder. So no row is read twice or not at all, whatever
happens at the same time: a trial that is trained again, edited or removed, a copy that is replaced, damaged or missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath

from orchestrator import parquet
from orchestrator.storage.backend import Entry
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire

_WORTH = 200  # files that are not in the copy; reading these takes about 0.2 s
_SETTLED = 60.0  # seconds for which a file has not changed: the clock of a bucket may have whole seconds
_FACTS = "kdctl_copied"  # the key of the facts in the file's metadata: file name → size, time of change, rows

Tables = dict[str, parquet.Table]  # by file name


def read_copied(storage: Storage, folder: str, entries: Collection[Entry], columns: Mapping[str, str]) -> Tables:
    """The rows of those listed files that the copy of their folder still holds; none where it is missing or damaged.

    `columns` are the columns to read, with their types.
    """
    found: Tables = {}
    try:
        table, facts = parquet.read_with_facts(storage.backend.read(storage.copied(folder)), columns)
        spans = {name: (size, changed, rows) for name, (size, changed, rows) in json.loads(facts[_FACTS]).items()}
        if sum(rows for _, _, rows in spans.values()) != table.num_rows:
            return {}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, parquet.UnreadableFile):
        return {}
    current = {entry.name: (entry.size, entry.modified) for entry in entries}
    start = 0
    for name, (size, changed, rows) in spans.items():
        if current.get(name) == (size, changed):
            found[name] = table.slice(start, rows)
        start += rows
    return found


def refresh(storage: Storage, folder: str, columns: Mapping[str, str], read: Callable[[Sequence[str]], Tables]) -> None:
    """Writes the copy of a folder again where that makes reading much faster.

    `read` reads files one by one. Another process that is doing this at the same time is left to do it. Raises
    StorageError.
    """
    entries = _list_settled(storage, folder)
    if len(entries) < _WORTH:
        return
    tables = read_copied(storage, folder, entries, columns)
    if len(entries) - len(tables) < _WORTH:
        return
    lease = acquire(storage, f"copy-{PurePosixPath(folder).name}")
    if lease is None:
        return
    with lease:
        tables |= read([entry.name for entry in entries if entry.name not in tables])
        unchanged = set(_list_settled(storage, folder))
        kept = [entry for entry in entries if entry in unchanged and entry.name in tables]
        facts = {entry.name: (entry.size, entry.modified, tables[entry.name].num_rows) for entry in kept}
        joined = parquet.join([tables[entry.name] for entry in kept], columns)
        storage.backend.write(storage.copied(folder), parquet.table_to_parquet(joined, {_FACTS: json.dumps(facts)}))


def _list_settled(storage: Storage, folder: str) -> list[Entry]:
    """The files that have not changed for a while."""
    latest = time.time() - _SETTLED
    return [
        entry for entry in storage.backend.list_files(folder) if storage.is_ours(entry.name) and entry.modified < latest
    ]
