"""Folders outside the storage that kdctl and Ray write on this machine: where they are, and whether they can be used.

A launch calls these functions before it starts Ray, and `doctor` reports their results, so the two cannot disagree.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import ResourceError

_SOCKET = 107  # bytes of a socket's path, a limit of Linux
# Where Ray makes its sockets below the temporary folder; a process id has up to 7 digits.
_SESSION = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_SHARED = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects


# The user's.


def home() -> Path | None:
    """The home directory; None if there is none, as for the user of a container without HOME and user entry."""
    try:
        found = Path.home()
    except RuntimeError:  # HOME is not set, and the system knows no user with this number
        return None
    return found if found.is_absolute() and os.path.isdir(found) else None  # noqa: PTH112 - never raises


def lend_home() -> None:
    """Sets HOME if the system knows no home directory at all: parts of Ray cannot be imported without one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(
            own() / "home"
        )  # the path is enough; as long as the folder does not exist, nothing else changes


def own() -> Path:
    """The folder for what kdctl records about this user; it may not exist yet.

    It is KDCTL_CACHE if that is set, otherwise kdctl/ in XDG_CACHE_HOME or ~/.cache; if that cannot be written, a
    folder that only this user may open, in XDG_RUNTIME_DIR or the folder for temporary files. Raises ResourceError
    if there is no such folder.
    """
    if path := os.environ.get("KDCTL_CACHE"):
        return Path(path)
    cache = os.environ.get("XDG_CACHE_HOME")
    base = Path(cache) if cache else (found := home()) and found / ".cache"
    if base and can_be_written(base / "kdctl"):
        return base / "kdctl"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _is_private(Path(runtime)) and can_be_written(Path(runtime)):
        return _make_private(Path(runtime, "kdctl"))
    return _make_private(Path(_find_temporary_folder(), f"kdctl-{os.getuid()}"))


def can_be_written(folder: Path) -> bool:
    """Whether files can be created in a folder, or the folder itself can be created. Writes nothing."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)  # noqa: PTH112 - never raises


def make(folder: Path, mode: int = 0o755) -> None:
    """Creates a folder and its parents, writable only by this user, whatever the umask is. Raises OSError."""
    for each in (*reversed(folder.parents), folder):
        if not os.path.isdir(each):  # noqa: PTH112 - never raises
            each.mkdir(mode=mode, exist_ok=True)


def create_private_file(file: Path) -> BinaryIO:
    """Creates a file that only this user may read, and opens it for writing. Raises OSError."""
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _find_temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        raise ResourceError(
            "there is no writable folder for temporary files; name one in TMPDIR, and a permanent one in KDCTL_CACHE"
        ) from None


def _make_private(folder: Path) -> Path:
    """Creates a folder that only this user may open, in a folder that others may write. Raises ResourceError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{folder}, where kdctl records what it started, cannot be created ({error.strerror}); name a writable "
            "folder in KDCTL_CACHE"
        ) from None
    if not _is_private(folder):
        raise ResourceError(
            f"{folder} is not a folder that only you may open, so somebody else may have created it; remove it, or "
            "name another folder in KDCTL_CACHE"
        )
    return folder


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()  # not stat: a link may lead to one of our folders that another user chose
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed at the end. Raises ResourceError if none can be created."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(
            f"no temporary folder can be created ({error.strerror or error}); name a writable folder with free "
            "space in TMPDIR"
        ) from None
    with folder as name:
        yield Path(name)


# Ray's.


def of_ray() -> Path:
    """The folder in which Ray keeps its logs and sockets. Raises ResourceError if it cannot be used."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - Ray's default
    _try_to_write(folder)
    length = len(os.fsencode(folder / _SESSION))
    if length > _SOCKET:
        raise ResourceError(
            f"{folder} is too long: a socket of Ray would have a path of {length} bytes, Linux allows {_SOCKET}; name "
            "a shorter folder in RAY_TMPDIR (RAY_TMPDIR=/tmp), or launch with --inline"
        )
    return folder


def _try_to_write(folder: Path) -> None:
    tried = folder
    try:
        if not can_be_written(folder):
            is_there = os.path.isdir(folder)  # noqa: PTH112 - never raises
            raise PermissionError(0, "Permission denied" if is_there else "it is not a folder, and cannot be created")
        for tried in (folder, folder / "ray"):  # another user may have made the second
            if tried.is_dir():
                tempfile.TemporaryFile(dir=tried).close()
    except OSError as error:
        raise ResourceError(
            f"{tried}, where Ray keeps its logs and sockets, cannot be written ({error.strerror or error}); name "
            "another folder in RAY_TMPDIR and TMPDIR, or launch with --inline"
        ) from None


def shared_memory() -> Path | None:
    """The folder in which Ray keeps its objects; None if the system has none. Raises ResourceError."""
    if not _SHARED.is_dir():
        return None
    try:
        tempfile.TemporaryFile(dir=_SHARED).close()
    except OSError as error:
        raise ResourceError(
            f"{_SHARED}, where Ray keeps its objects, cannot be written ({error.strerror or error}); start a container "
            "with --shm-size=1g, or launch with --inline"
        ) from None
    return _SHARED
