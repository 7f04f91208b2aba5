"""Small files in the user's cache folder, in which kdctl records the clusters and dashboards that it started."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator import codec
from orchestrator.files import write_file
from orchestrator.machine import folders
from orchestrator.machine.processes import read_start_time


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process, known by its id and its start time, so that no later process with the same id is taken for it."""

    pid: int
    started: str

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return is_running(self.pid, self.started)


Record = TypeVar("Record", bound=ProcessRecord)


def is_running(pid: int, started: str) -> bool:
    """Whether the process with this id is the one that started at that time."""
    return (read_start_time(pid) or None) == started


def locate(name: str) -> Path:
    """The file with this name for this machine, since machines may share a home directory. Raises ResourceError."""
    return folders.own() / f"{name}-{socket.gethostname()}"


def write(file: Path, record: ProcessRecord) -> None:
    """Writes a record that only this user may read. Raises OSError."""
    folders.make(file.parent)
    write_file(file, json.dumps(codec.encode(record)), private=True)


def read(file: Path, kind: type[Record]) -> Record | None:
    """The record in a file; None if there is none. A file that is damaged or of another version is deleted."""
    try:
        return codec.decode(kind, json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        file.unlink(missing_ok=True)
        return None
