"""The storage: every file name in it, atomic writes and locks. Nobody else composes a path below its root."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from orchestrator.errors import StorageError
from orchestrator.records import TableKey

_PART = ".part-"  # what names of unfinished files begin with, and what readers pass over


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder that holds trials, teachers and results of many studies."""

    root: Path

    @classmethod
    def at(cls, place: str | Path) -> Storage:
        """The storage in a folder. Raises StorageError for a bucket's address, which would become an odd folder."""
        if "://" in str(place):
            raise StorageError(f"storage {str(place)!r} is no folder; buckets are not supported: name a folder")
        return cls(Path(place).absolute())

    def weights(self, trial_id: str) -> Path:
        """The final weights of a trial, safetensors."""
        return self.root / "trials" / trial_id / "weights.safetensors"

    def table(self, key: TableKey) -> Path:
        """A teacher table, a NumPy array [V, N, C] of float16. Its facts stand beside it, see `table_facts`."""
        return self.root / "teachers" / key.teacher_id / f"{key.name}.npy"

    def table_facts(self, key: TableKey) -> Path:
        """What a table was made from (JSON); written after the table, so that it stands for a whole one."""
        return self.table(key).with_suffix(".json")

    def dataset(self, name: str, digest: str) -> Path:
        """A dataset decoded, checked and in canonical order, safetensors."""
        return self.root / "datasets" / f"{name}-{digest}.safetensors"

    def trial_rows(self) -> Path:
        """The folder of the `trials` table, one Parquet file a trial."""
        return self.root / "results" / "trials"

    def epoch_rows(self) -> Path:
        """The folder of the `epochs` table, one Parquet file a trial."""
        return self.root / "results" / "epochs"

    def trial_row(self, trial_id: str) -> Path:
        """The row of one trial."""
        return self.trial_rows() / f"{trial_id}.parquet"

    def trial_epochs(self, trial_id: str) -> Path:
        """The epochs of one trial."""
        return self.epoch_rows() / f"{trial_id}.parquet"

    def tables(self) -> Iterator[TableKey]:
        """Every whole table."""
        for path in sorted(self.root.glob("teachers/*/*.json")):
            key = _table_key(read_json(path))
            if key and self.table(key).exists():
                yield key

    def prepare(self) -> None:
        """Makes the folder and tries it. Raises StorageError where it cannot be written."""
        try:
            self.trial_rows().mkdir(parents=True, exist_ok=True)
            self.epoch_rows().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(b"kdctl")
        except OSError as error:
            reason = f"{error.strerror or error}"
            raise StorageError(
                f"storage {str(self.root)!r} cannot be written ({reason}); wanted a folder with room that you may "
                "write; free it, or name another with --storage"
            ) from None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds a lock of this storage. The system frees it when its holder dies, however it dies.

        Raises StorageError where it cannot be written.
        """
        path = self.root / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(path).acquire()
        except OSError as error:
            raise _unwritable(path, error) from None
        with held:
            yield


def _table_key(facts: Any) -> TableKey | None:
    try:
        return TableKey(**{name: facts["key"][name] for name in TableKey.__slots__})
    except (TypeError, KeyError):
        return None


def key_facts(key: TableKey) -> dict[str, Any]:
    """A table's key as JSON data, as `Storage.tables` reads it."""
    return asdict(key)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what was written is moved to `path` at the end, whole or not at all.

    Raises StorageError where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{_PART}{path.name}-", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from None
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        part.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written ({error.strerror or error}); make room or mend the folder, then go on"
    )


def _umask() -> int:
    # mkstemp makes files private; results are to be shared as any file the user writes.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
