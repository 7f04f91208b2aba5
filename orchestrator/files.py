"""Local files that are either complete or missing: written beside their final name, then moved onto it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part-"  # the names of unfinished files begin with it, and readers skip them
_LONGEST = 60  # characters of a file's name that its unfinished file repeats; a name has at most 255 bytes


@contextmanager
def replace_file(target: Path, *, private: bool = False) -> Iterator[Path]:
    """An unfinished file to fill, in the folder of `target`; it replaces `target` when the block ends without an error.

    The content is on the disk before the name. With `private` no other user may read the file; otherwise it has the
    permissions of any new file. Raises OSError, and then `target` is as it was.
    """
    part = target.parent / f"{PART}{target.name[:_LONGEST]}-{secrets.token_hex(8)}"
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        with suppress(OSError):  # the disk is gone; the first error says more
            part.unlink(missing_ok=True)


def write_file(target: Path, content: str | bytes, *, private: bool = False) -> None:
    """Writes a file in one step, text as UTF-8. Raises OSError, and then `target` is as it was."""
    with replace_file(target, private=private) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
