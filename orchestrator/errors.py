"""The tree of errors a person can act on. Anything else that escapes is a bug in kdctl."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_TRIALS = 1  # some trial failed or was skipped
EXIT_USAGE = 2  # wrong usage, study file, data folder or storage
EXIT_BUG = 3
EXIT_INTERRUPTED = 130

MAX_SHOWN = 100  # faults in one message


class KdctlError(Exception):
    """An error with a message for the user: what we got, what we wanted, what to do."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    """One thing wrong at one place of a study file (or of a `--set`)."""

    source: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        # A `--set` is its own place; a file has lines and columns, counted from 1 as editors do.
        place = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        text = f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"
        return printable(text)


def printable(text: str) -> str:
    """Text in which control characters are shown: what a file brings must not steer the terminal that shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class StudyError(KdctlError):
    """A study file that cannot be used, with every fault that was found in it."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        lines = [str(fault) for fault in self.faults[:MAX_SHOWN]]
        if len(self.faults) > MAX_SHOWN:
            lines.append(f"and {len(self.faults) - MAX_SHOWN:,} more; mend these first")
        super().__init__("\n".join(lines))


class DataError(KdctlError):
    """A dataset that is missing, damaged or not what its name says."""


class StorageError(KdctlError):
    """A storage that cannot be written, or a file in it that cannot be read."""


class ResourceError(KdctlError):
    """Resources that this machine or cluster can never give."""


class TeacherError(KdctlError):
    """Teacher weights that do not fit, or a teacher table that does not say what the teacher says."""

    exit_code = EXIT_TRIALS


class DivergedError(KdctlError):
    """A training loss that is no longer a finite number."""

    exit_code = EXIT_TRIALS


class Interrupted(KdctlError):
    """The user asked to stop; the same command goes on from here."""

    exit_code = EXIT_INTERRUPTED
