"""The log of each trial, in the storage: its messages, and the full traceback of an error."""

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
    """A log to which the holder of the trial's lease writes; it keeps what earlier attempts wrote.

    Raises StorageError if the earlier log cannot be read, because it would be overwritten.
    """

    def __init__(self, storage: Storage, trial_id: str) -> None:
        self._storage = storage
        self._trial_id = trial_id
        self._lines = _load(storage, trial_id)
        self._is_dirty = False

    def add(self, text: str) -> None:
        """Adds one or more lines, with the time (UTC); the next `flush` stores them."""
        now = datetime.now(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
        first, *more = text.splitlines() or [""]
        self._lines += [_format_line(f"{now} {first}"), *(f"    {_format_line(line)}" for line in more)]
        self._is_dirty = True

    def flush(self) -> None:
        """Stores the log if it changed. Raises StorageError."""
        if self._is_dirty:
            _write(self._storage, self._trial_id, self._lines)
            self._is_dirty = False


def _format_line(line: str) -> str:
    text = printable(line.rstrip())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _write(storage: Storage, trial_id: str, lines: Sequence[str]) -> None:
    content = "\n".join(_drop_oldest(lines)) + "\n"
    storage.backend.write(storage.log(trial_id), content.encode("utf-8", errors="replace"))


def _drop_oldest(lines: Sequence[str]) -> Iterable[str]:
    if len(lines) <= MOST_LINES:
        return lines
    earlier = _DROPPED.fullmatch(lines[0])
    dropped = len(lines) - MOST_LINES + 1
    total = dropped + (int(earlier[1]) - 1 if earlier else 0)
    return [f"… {total} earlier lines were dropped", *lines[dropped:]]


def read(storage: Storage, trial_id: str) -> list[str]:
    """The lines of a trial's log; empty if there is no log, or it cannot be read."""
    with suppress(StorageError):
        return _load(storage, trial_id)
    return []


def _load(storage: Storage, trial_id: str) -> list[str]:
    with suppress(FileNotFoundError):
        return storage.backend.read(storage.log(trial_id)).decode("utf-8", errors="replace").splitlines()
    return []


def append(storage: Storage, trial_id: str, text: str) -> None:
    """Adds a message from outside the trial, for example that its worker died. Ignores errors of the storage."""
    with suppress(StorageError):
        log = Log(storage, trial_id)
        log.add(text)
        log.flush()


def locate(storage: Storage, trial_id: str) -> str:
    """Where a trial's log is, for a person."""
    return storage.backend.describe(storage.log(trial_id))
