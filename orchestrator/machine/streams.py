"""Standard output for kdctl's own output; the output of libraries goes to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

_STDOUT, _STDERR = 1, 2  # descriptors


@contextmanager
def reserved_stdout() -> Iterator[TextIO | None]:
    """Gives standard output; within, everything else that is written there goes to standard error.

    Ray prints the output of its processes from threads of its own, and native code writes to the descriptor.
    Gives None if standard output is closed.
    """
    own = sys.stdout
    if own is None or sys.stderr is None:
        yield own
    elif _get_descriptor(own) == _STDOUT and _get_descriptor(sys.stderr) == _STDERR:
        with _move(own) as moved, redirect_stdout(sys.stderr):
            yield moved
    else:  # a program that uses kdctl replaced one of them
        with redirect_stdout(sys.stderr):
            yield own


def _get_descriptor(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError):
        return stream.fileno()
    return None


@contextmanager
def _move(own: TextIO) -> Iterator[TextIO]:
    """The same stream through another descriptor, while its own descriptor leads to standard error."""
    own.flush()
    saved = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with open(saved, "w", encoding=own.encoding, errors=own.errors, closefd=False) as moved:
            yield moved
    finally:
        os.dup2(saved, _STDOUT)
        os.close(saved)
