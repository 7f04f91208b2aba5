"""Standard output and standard error where they cannot be written: a full disk, a reader that left, a closed one."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def open_closed() -> None:
    """Opens what the caller closed (`>&-`): else the next file that is opened would get what is printed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def complaint(error: OSError) -> str | None:
    """What to say of an error of the disk, which is no bug; None for another error.

    One that names no file is of what was open already: standard output, or a temporary file.
    """
    if error.errno not in _FULL:
        return None
    what = error.filename or "standard output, or a temporary file,"
    why = error.strerror or str(error)
    hint = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "the disk does not take it"
    return f"{what} cannot be written ({why}): {hint}; make room, or write elsewhere"


def drop_unwritable() -> None:
    """Drops what is left for a stream that takes no more, which Python would try again, loudly, at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
