"""The tree of errors a person can act on. Anything else that escapes is a bug in kdctl."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

EXIT_TRIALS = 1  # some trial failed or was skipped
EXIT_USAGE = 2  # wrong usage, study file, data folder or storage
EXIT_BUG = 3
EXIT_LOST = 75  # only between a launch and its supervisor: Ray's own processes died
EXIT_INTERRUPTED = 130

# What a command may end with, as its help and the docs say it.
EXIT_CODES: Mapping[int, str] = {
    0: "all done",
    EXIT_TRIALS: "some trial failed or was skipped, or a check found something bad",
    EXIT_USAGE: "wrong usage, study file, data or storage, or a disk that is full",
    EXIT_BUG: "a bug, with a log to send",
    EXIT_INTERRUPTED: "interrupted, and the same command goes on",
}

MAX_SHOWN = 100  # faults in one message


class KdctlError(Exception):
    """An error with a message for the user: what we got, what we wanted, what to do."""

    exit_code = EXIT_USAGE
    failure = "error"  # its class where it ends a trial, see `records.Failure`


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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs; line and column are null where a `--set` is the place."""
        line, column = (self.line, self.column) if self.line else (None, None)
        place = {"file": printable(self.source), "line": line, "column": column}
        return {**place, "path": printable(self.path), "message": printable(self.message)}


def printable(text: str) -> str:
    """Text for a terminal, a row or a report: control characters are shown, not obeyed, and secrets are masked."""
    return masked(_escaped(masked(text)))  # the second time for a secret that only the escapes spell out


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# Environment variables that hold secrets, by their names.
_SECRET_NAME = re.compile(
    r"(?:\A|_)(?:SECRET|SECRET_KEY|ACCESS_KEY|SESSION_TOKEN|TOKEN|PASSWORD|API_KEY)\Z|\AAWS_ACCESS_KEY_ID\Z"
)
_SHORTEST_SECRET = 6  # characters; to mask `abc` everywhere would leave messages that nobody can read

# Credentials before the host of a URL. A password may hold an unescaped slash, as keys of buckets do; what follows
# a host and its port is a path, which may hold an @.
_USER = re.compile(r"://(?:[^\s/?#]*|[^\s/?#:@\[]*:(?!\d{1,5}/)[^\s@]{1,2000})@")
_QUERY = re.compile(
    r"([?&;][^\s?&;#=]{0,40}?(?:access_?key|secret|password|token|signature|api_?key|credential)[^\s?&;#=]{0,40}=)"
    r"[^\s&#]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Text with `***` for credentials in URLs and for the values of environment variables that hold secrets."""
    text = _USER.sub("://***@", text)
    text = _QUERY.sub(r"\1***", text)
    known = _known.get()
    secrets = _secrets() if known is None else known
    # Again and again, as what stands around a mask may spell another secret; every turn leaves a shorter text.
    while found := next((secret for secret in secrets if secret in text), None):
        text = text.replace(found, "***")
    return text


# The secrets of the environment, where it was looked at already.
_known: ContextVar[list[str] | None] = ContextVar("_known", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Within, the environment is searched for secrets once, not for every text: for pages of many texts."""
    token = _known.set(_secrets())
    try:
        yield
    finally:
        _known.reset(token)


def _secrets() -> list[str]:
    """The secrets in the environment in every form a message may hold them in, longest first."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
    forms = {form for value in values for form in (value, _escaped(value), repr(value)[1:-1], _quoted(value))}
    return sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=lambda form: (-len(form), form))


def _quoted(value: str) -> str:
    """As it stands in a URL."""
    return quote(value, safe="", errors="replace")


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

    failure = "data"


class StorageError(KdctlError):
    """A storage that cannot be written, or a file in it that cannot be read."""

    failure = "storage"


class ResourceError(KdctlError):
    """Resources that this machine or cluster can never give."""


class ClusterError(KdctlError):
    """A Ray cluster that cannot be reached through its dashboard, or that refuses what it is asked for."""


class RayLost(KdctlError):
    """Ray's own processes died under a launch."""

    exit_code = EXIT_LOST


class TeacherError(KdctlError):
    """Teacher weights that do not fit, or a teacher table that does not say what the teacher says."""

    exit_code = EXIT_TRIALS
    failure = "teacher"


class DivergedError(KdctlError):
    """A training loss that is no longer a finite number."""

    exit_code = EXIT_TRIALS
    failure = "diverged"


class Interrupted(KdctlError):
    """The user asked to stop; the same command goes on from here."""

    exit_code = EXIT_INTERRUPTED


class LeaseLost(KdctlError):
    """A trial that another launch has taken over; nothing more may be written for it here."""


class Stopped(KdctlError):
    """The launch is to stop, or has ended: what runs writes a checkpoint and ends."""
