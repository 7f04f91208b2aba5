"""Standard output for what kdctl itself prints: what libraries print goes to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

_STDOUT, _STDERR = 1, 2  # descriptors


@contextmanager
def reserved_stdout() -> Iterator[TextIO | None]:
    """Gives standard output; within, whatever else is written there lands on standard error.

    Ray prints what its processes report, from threads of its own, and native code writes to the descriptor.
    Gives None where standard output is closed.
    """
    own = sys.stdout
    if own is None or sys.stderr is None:
        yield own
    elif _descriptor(own) == _STDOUT and _descriptor(sys.stderr) == _STDERR:
        with _moved(own) as moved, redirect_stdout(sys.stderr):
            yield moved
    else:  # a program that uses kdctl put another stream in its place
        with redirect_stdout(sys.stderr):
            yield own


def _descriptor(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError):
        return stream.fileno()
    return None


@contextmanager
def _moved(own: TextIO) -> Iterator[TextIO]:
    """The same stream through another descriptor, while its own leads to standard error."""
    own.flush()
    saved = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with open(saved, "w", encoding=own.encoding, errors=own.errors, closefd=False) as moved:
            yield moved
    finally:
        os.dup2(saved, _STDOUT)
        os.close(saved)
