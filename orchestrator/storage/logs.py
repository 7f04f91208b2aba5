"""The log of each trial, in the storage: what it said on its way, and the whole story of an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from orchestrator.errors import StorageError
from orchestrator.storage.layout import Storage
from orchestrator.text import printable

MOST_LINES = 2000  # of one log; the oldest go first
_LONGEST = 2000  # characters of a line
_DROPPED = re.compile(r"… (\d+) earlier lines were dropped")


class Log:
    """A log that is being written, by whoever holds the trial's lease; what an earlier attempt wrote stays.

    Raises StorageError where that cannot be read: it would be written over.
    """

    def __init__(self, storage: Storage, trial_id: str) -> None:
        self._storage = storage
        self._trial_id = trial_id
        self._lines = _load(storage, trial_id)
        self._is_dirty = False

    def add(self, text: str) -> None:
        """Adds a text of one or several lines, with the time (UTC); it is kept at the next `flush`."""
        now = datetime.now(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
        first, *more = text.splitlines() or [""]
        self._lines += [_shown(f"{now} {first}"), *(f"    {_shown(line)}" for line in more)]
        self._is_dirty = True

    def flush(self) -> None:
        """Writes the log where something was added. Raises StorageError."""
        if self._is_dirty:
            _write(self._storage, self._trial_id, self._lines)
            self._is_dirty = False


def _shown(line: str) -> str:
    text = printable(line.rstrip())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _write(storage: Storage, trial_id: str, lines: Sequence[str]) -> None:
    content = "\n".join(_bounded(lines)) + "\n"
    storage.backend.write(storage.log(trial_id), content.encode("utf-8", errors="replace"))


def _bounded(lines: Sequence[str]) -> Iterable[str]:
    if len(lines) <= MOST_LINES:
        return lines
    earlier = _DROPPED.fullmatch(lines[0])
    dropped = len(lines) - MOST_LINES + 1
    total = dropped + (int(earlier[1]) - 1 if earlier else 0)
    return [f"… {total} earlier lines were dropped", *lines[dropped:]]


def read(storage: Storage, trial_id: str) -> list[str]:
    """The lines of a trial's log; none where there is no log, or where it cannot be read."""
    with suppress(StorageError):
        return _load(storage, trial_id)
    return []


def _load(storage: Storage, trial_id: str) -> list[str]:
    with suppress(FileNotFoundError):
        return storage.backend.read(storage.log(trial_id)).decode("utf-8", errors="replace").splitlines()
    return []


def append(storage: Storage, trial_id: str, text: str) -> None:
    """Adds what somebody else has to say of a trial, as of a worker that died. A storage that fails is no error."""
    with suppress(StorageError):
        log = Log(storage, trial_id)
        log.add(text)
        log.flush()


def locate(storage: Storage, trial_id: str) -> str:
    """Where a trial's log is, for a person."""
    return storage.backend.describe(storage.log(trial_id))
