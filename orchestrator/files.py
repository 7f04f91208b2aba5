"""Local files that are either complete or missing: written beside their final name, then moved onto it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part-"  # the names of unfinished files begin with it, and readers skip them
_LONGEST = 60  # characters of a file's name that its unfinished file repeats; a name has at most 255 bytes
_umask_lock = threading.Lock()


@contextmanager
def replace_file(target: Path, *, private: bool = False) -> Iterator[Path]:
    """An unfinished file to fill, in the folder of `target`; it replaces `target` when the block ends without an error.

    The content is on the disk before the name. With `private` no other user may read the file; otherwise it has the
    permissions of any new file. Raises OSError, and then `target` is as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{PART}{target.name[:_LONGEST]}-", dir=target.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if not private:
            part.chmod(0o666 & ~read_umask())
        part.replace(target)
    finally:
        with suppress(OSError):  # the disk is gone; the first error says more
            part.unlink(missing_ok=True)


def write_file(target: Path, content: str | bytes, *, private: bool = False) -> None:
    """Writes a file in one step, text as UTF-8. Raises OSError, and then `target` is as it was."""
    with replace_file(target, private=private) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def read_umask() -> int:
    """The permission bits that new files of this process lack; mkstemp makes files private, but results are shared."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    with _umask_lock:  # without /proc, the umask can only be read by setting another one
        mask = os.umask(0o022)
        os.umask(mask)
    return mask
