"""Standard output and standard error that cannot be written: a full disk, a closed pipe, a closed descriptor."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def open_closed() -> None:
    """Opens standard streams that the caller closed (`>&-`): otherwise the next opened file would get the output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def complaint(error: OSError) -> str | None:
    """The message for an error of the disk, which is not a bug; None for any other error.

    An error without a file name is of a file that was already open: standard output, or a temporary file.
    """
    if error.errno not in _FULL:
        return None
    what = error.filename or "standard output, or a temporary file,"
    why = error.strerror or str(error)
    hint = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "the disk refuses it"
    return f"{what} cannot be written ({why}): {hint}; make room, or write elsewhere"


def drop_unwritable() -> None:
    """Discards unwritten output of a stream that fails; Python would try again at exit, and print an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
