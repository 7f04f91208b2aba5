"""Storage backends: the contract of all, and the backend for a folder of this machine or of a network file system."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator import files
from orchestrator.errors import StorageError
from orchestrator.files import PART

MARKER = "kdctl-storage.json"  # in the root of every storage, so that an empty mount point is not taken for a storage


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a storage. `modified` is in seconds by the clock of the storage, whichever machine wrote the file."""

    name: str
    size: int
    modified: float


class StorageBackend(Protocol):
    """Files by name, like `results/trials/1f.parquet`; each is complete or does not exist.

    Every method raises StorageError if the storage cannot be reached, read or written.
    """

    @property
    def address(self) -> str:
        """The address of the storage, as `Storage.at` takes it."""

    def describe(self, name: str) -> str:
        """The full name of a file, for a person."""

    def prepare(self) -> None:
        """Creates the storage if it is missing, and tries to write to it."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError if there is no such file."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, and replaces any earlier file with this name."""

    def stage(self, name: str) -> AbstractContextManager[Path]:
        """A local file to fill, for content too large for memory; it replaces the file if the block succeeds."""

    def local_path(self, name: str) -> Path:
        """A local file with this content, only for reading or mapping. Raises FileNotFoundError if there is none."""

    def stat(self, name: str) -> Entry | None:
        """The size and time of a file; None if there is no such file."""

    def read_sizes(self, names: Sequence[str]) -> list[int | None]:
        """The size of each file in bytes; None for a file that does not exist."""

    def list_files(self, folder: str) -> list[Entry]:
        """Every finished file below a folder, at any depth, sorted by name; empty if there is no such folder."""

    def list_unfinished(self) -> list[Entry]:
        """Unfinished files: of writers that are still writing, or that died."""

    def touch(self, name: str) -> bool:
        """Sets the `modified` time of a file to now; False if there is no such file."""

    def delete(self, name: str) -> None:
        """Removes a file if it exists."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine or of a network file system."""

    root: Path

    @property
    def address(self) -> str:
        return str(self.root)

    def describe(self, name: str) -> str:
        return str(self.root / name)

    def prepare(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(b"kdctl")
                file.flush()
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise StorageError(
                f"storage {str(self.root)!r} cannot be written ({reason}); expected a folder with free space that "
                "you may write to; free some space or change its permissions, or name another folder with --storage"
            ) from None
        if not (self.root / MARKER).exists():
            with self._replacing(MARKER) as part:
                part.write_text('{"kdctl_storage": 1}\n')

    def read(self, name: str) -> bytes:
        with self._reading(name):
            return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        with self.stage(name) as part:
            part.write_bytes(content)

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        self._make_folder(name)
        with self._replacing(name) as part:
            yield part

    def local_path(self, name: str) -> Path:
        if self.stat(name) is None:
            raise FileNotFoundError(self.describe(name))
        return self.root / name

    def stat(self, name: str) -> Entry | None:
        try:
            with self._reading(name):
                found = (self.root / name).stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Entry(name, found.st_size, found.st_mtime)

    def read_sizes(self, names: Sequence[str]) -> list[int | None]:
        found = map(self.stat, names)
        return [entry.size if entry else None for entry in found]

    def list_files(self, folder: str) -> list[Entry]:
        return self._entries(folder, lambda name: not name.startswith(PART))

    def list_unfinished(self) -> list[Entry]:
        return self._entries(".", lambda name: name.startswith(PART))

    def _entries(self, folder: str, is_listed: Callable[[str], bool]) -> list[Entry]:
        found: list[Entry] = []
        with self._reading(folder):
            for path, _, names in os.walk(self.root / folder, onerror=_raise_unless_missing):
                relative = Path(path).relative_to(self.root)
                entries = (self.stat((relative / name).as_posix()) for name in filter(is_listed, names))
                found += [entry for entry in entries if entry]  # a file may be removed meanwhile
        return sorted(found, key=lambda entry: entry.name)

    def touch(self, name: str) -> bool:
        with self._writing(name):
            try:
                os.utime(self.root / name)
            except FileNotFoundError:
                self._refuse_if_gone()
                return False
        return True

    def delete(self, name: str) -> None:
        with self._writing(name):
            (self.root / name).unlink(missing_ok=True)

    def _make_folder(self, name: str) -> None:
        folder = (self.root / name).parent
        with self._writing(name):
            if folder.is_dir():
                return
        self._refuse_if_gone()
        with self._writing(name):
            folder.mkdir(parents=True, exist_ok=True)

    def _refuse_if_gone(self) -> None:
        if not (self.root / MARKER).exists():
            # Otherwise files would be written to the mount point of a file system that is no longer mounted.
            raise StorageError(
                f"storage {self.address!r} is gone: its {MARKER} is missing; mount the folder again, then continue "
                "with the same command"
            )

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """An unfinished file beside the final one, which it replaces in one step if the block succeeds."""
        with self._writing(name), files.replace_file(self.root / name) as part:
            yield part

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(self.describe(name)) from error
        except IsADirectoryError:
            raise StorageError(f"{self.describe(name)} is a folder, expected a file; move it away first") from None
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"{self.describe(name)} cannot be read ({reason}); fix that, then continue") from None

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except IsADirectoryError:
            raise StorageError(f"{self.describe(name)} is a folder, expected a file; move it away first") from None
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"{self.describe(name)} cannot be written ({reason}); free some space or fix the folder, then "
                "continue with the same command"
            ) from None


def _raise_unless_missing(error: OSError) -> None:
    # By default os.walk skips folders that it cannot read, as if they were empty.
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
