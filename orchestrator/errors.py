"""All errors that a user can act on, and the exit codes. Any other exception that escapes is a bug in kdctl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.text import printable

EXIT_TRIALS = 1  # some trial failed or was skipped
EXIT_USAGE = 2  # wrong usage, study file, data folder or storage
EXIT_BUG = 3
EXIT_LOST = 75  # only between a launch and its supervisor: Ray's own processes died
EXIT_INTERRUPTED = 130

# The exit codes of commands, as their help and the docs describe them.
EXIT_CODES: Mapping[int, str] = {
    0: "all done",
    EXIT_TRIALS: "a trial failed or was skipped, or a check found a problem",
    EXIT_USAGE: "wrong usage; an error in the study file, the data or the storage; or a full disk",
    EXIT_BUG: "a bug in kdctl; the message names the log to send",
    EXIT_INTERRUPTED: "interrupted; the same command resumes",
}

MAX_SHOWN = 100  # faults in one message


class KdctlError(Exception):
    """An error with a message for the user: what was found, what was expected, how to fix it."""

    exit_code = EXIT_USAGE
    failure = "error"  # its class where it ends a trial, see `records.Failure`


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    """One fault at one location of a study file (or in a `--set`)."""

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        # A `--set` has no lines; a file has lines and columns, counted from 1 as in editors.
        location = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        text = f"{location}: {self.path}: {self.message}" if self.path else f"{location}: {self.message}"
        return printable(text)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs; line and column are null for a fault in a `--set`."""
        line, column = (self.line, self.column) if self.line else (None, None)
        location = {"file": printable(self.source), "line": line, "column": column}
        return {**location, "path": printable(self.path), "message": printable(self.message)}


class StudyError(KdctlError):
    """A study file that cannot be used, with all its faults."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        lines = [str(fault) for fault in self.faults[:MAX_SHOWN]]
        if len(self.faults) > MAX_SHOWN:
            lines.append(f"and {len(self.faults) - MAX_SHOWN:,} more; fix these first")
        super().__init__("\n".join(lines))


class DataError(KdctlError):
    """A dataset that is missing, damaged, or other data than its name promises."""

    failure = "data"


class StorageError(KdctlError):
    """A storage that cannot be written, or a file in it that cannot be read."""

    failure = "storage"


class ResourceError(KdctlError):
    """Resources that this machine or cluster does not have."""


class ClusterError(KdctlError):
    """A Ray cluster that cannot be reached through its dashboard, or that refuses a request."""


class RayLost(KdctlError):
    """Ray's own processes died under a launch."""

    exit_code = EXIT_LOST


class TeacherError(KdctlError):
    """Teacher weights that do not fit, or a teacher table that does not match its teacher."""

    exit_code = EXIT_TRIALS
    failure = "teacher"


class DivergedError(KdctlError):
    """A training loss that is no longer a finite number."""

    exit_code = EXIT_TRIALS
    failure = "diverged"


class DeviceLost(KdctlError):
    """A GPU that this process can no longer use; another process may."""

    exit_code = EXIT_TRIALS
    failure = "device"


class Interrupted(KdctlError):
    """The user asked to stop; the same command resumes from here."""

    exit_code = EXIT_INTERRUPTED


class LeaseLost(KdctlError):
    """A trial that another launch has taken over; nothing more may be written for it here."""


class Stopped(KdctlError):
    """The launch was asked to stop, or has ended: running trials write a checkpoint and end."""
