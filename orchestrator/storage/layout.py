"""The storage and the names of all its files. No other module composes such a name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator import codec
from orchestrator.errors import StorageError
from orchestrator.machine import paths
from orchestrator.records import PADDINGS, TableKey, is_trial_id
from orchestrator.storage.backend import Folder, StorageBackend

_OUTPUTS = ("logits", "pooled")


class FileKind(StrEnum):
    """What a file of a storage contains."""

    WEIGHTS = "weights"
    TABLE = "table"
    TABLE_FACTS = "table facts"
    TABLE_SLICE = "table slice"
    DATASET = "dataset"
    TRIAL_ROW = "trial row"
    TRIAL_EPOCHS = "trial epochs"
    COPIED_ROWS = "copied rows"
    CHECKPOINT = "checkpoint"
    CLAIM = "claim"
    PLAN = "plan"
    LOG = "log"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What the name of a file shows; `trial_id` is the trial or teacher that it belongs to, `table` its table."""

    kind: FileKind
    trial_id: str = ""
    table: TableKey | None = None


_TRIAL = "(?P<trial>[0-9a-f]{1,12})"  # ids that a launch makes have 12 digits
_TABLE = rf"teachers/{_TRIAL}/(?P<table>[^/]+?)"  # `TableKey.parse` says which names a table has
# All names of files in a storage. A file with any other name is there by mistake, such as a copy of a sync program.
_NAMES = {
    kind: re.compile(pattern)
    for kind, pattern in {
        FileKind.WEIGHTS: rf"trials/{_TRIAL}/weights\.safetensors",
        FileKind.TABLE: rf"{_TABLE}\.npy",
        FileKind.TABLE_FACTS: rf"{_TABLE}\.json",
        FileKind.TABLE_SLICE: rf"{_TABLE}-[0-9a-f]{{8}}-(?:\d{{6}}|[1-9]\d{{6,8}})\.slice",
        FileKind.DATASET: r"datasets/[a-z0-9]+-[0-9a-f]+\.safetensors",
        FileKind.TRIAL_ROW: rf"results/trials/{_TRIAL}\.parquet",
        FileKind.TRIAL_EPOCHS: rf"results/epochs/{_TRIAL}\.parquet",
        FileKind.COPIED_ROWS: r"results/copied/(?:trials|epochs)\.parquet",
        FileKind.CHECKPOINT: rf"checkpoints/{_TRIAL}/(?:\d{{6}}|[1-9]\d{{6,}})-(?:\d{{8}}|[1-9]\d{{8,}})\.checkpoint",
        FileKind.CLAIM: r"leases/[^/~]+~[0-9a-f]{16}\.json",
        FileKind.PLAN: r"plans/[0-9a-f]{1,12}\.json",
        FileKind.LOG: rf"logs/{_TRIAL}\.log",
        FileKind.STOP: r"stops/[a-z0-9-]+\.json",
    }.items()
}
CHECKPOINTS_KEPT = 2  # of a running trial: the last one, and the one before it in case the last is damaged


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder or bucket that holds trials, teachers and results of many studies; names are relative to it."""

    backend: StorageBackend

    @classmethod
    def at(cls, address: str | Path) -> Storage:
        """The storage in a folder, or at `s3://bucket/folder` or `gs://bucket/folder`.

        Raises StorageError for an address of another kind, for a file, and for a bucket that cannot exist.
        """
        if not str(address).startswith(paths.BUCKETS):
            try:
                folder = paths.local(address, "storage", or_bucket=True).absolute()
            except paths.PathError as error:
                raise StorageError(str(error)) from None
            _refuse_file(folder)
            return cls(Folder(folder))
        from orchestrator.storage.bucket import Bucket  # here, because importing its library takes long

        return cls(Bucket.at(str(address)))

    def prepare(self) -> None:
        """Creates the storage if it is missing. Raises StorageError if it cannot be written."""
        self.backend.prepare()

    # Names.

    def weights(self, trial_id: str) -> str:
        """The final weights of a trial, safetensors."""
        return f"trials/{trial_id}/weights.safetensors"

    def teacher(self, trial_id: str) -> str:
        """The folder of a teacher's tables."""
        return f"teachers/{trial_id}"

    def table(self, key: TableKey) -> str:
        """A teacher table, a NumPy array [V, N, C] of float16. Its facts are beside it, see `table_facts`."""
        return f"{self.teacher(key.teacher_id)}/{key.name}.npy"

    def table_facts(self, key: TableKey) -> str:
        """What a table was made from (JSON); written after the table, so that it proves that the table is complete."""
        return f"{self.teacher(key.teacher_id)}/{key.name}.json"

    def table_slice(self, key: TableKey, digest: str, number: int) -> str:
        """A slice of an unfinished table, see `teachers`; `digest` identifies what it is made from."""
        return f"{self.teacher(key.teacher_id)}/{key.name}-{digest}-{number:06d}.slice"

    def dataset(self, name: str, digest: str) -> str:
        """A dataset, decoded, checked and in canonical order, safetensors."""
        return f"datasets/{name}-{digest}.safetensors"

    trial_rows = "results/trials"  # the folder of the `trials` table, one Parquet file per trial
    epoch_rows = "results/epochs"  # the folder of the `epochs` table, one Parquet file per trial

    def trial_row(self, trial_id: str) -> str:
        """The row of one trial."""
        return f"{self.trial_rows}/{trial_id}.parquet"

    def trial_epochs(self, trial_id: str) -> str:
        """The epochs of one trial."""
        return f"{self.epoch_rows}/{trial_id}.parquet"

    copied_rows = "results/copied"

    def copied(self, folder: str) -> str:
        """The copy of all rows in the folder of a table, see `compaction`."""
        return f"{self.copied_rows}/{folder.rpartition('/')[2]}.parquet"

    def checkpoints(self, trial_id: str) -> str:
        """The folder of a trial's checkpoints."""
        return f"checkpoints/{trial_id}"

    def checkpoint(self, trial_id: str, epoch: int, images: int) -> str:
        """A checkpoint taken in an epoch after this number of its images; names sort in the order of training."""
        return f"{self.checkpoints(trial_id)}/{epoch:06d}-{images:08d}.checkpoint"

    leases = "leases"  # the folder of claims

    def claim(self, resource: str, owner: str) -> str:
        """The claim of one owner to a resource, see `leases`."""
        return f"{self.leases}/{resource}~{owner}.json"

    plans = "plans"  # the folder of the last launched plan of each study

    def plan(self, digest: str) -> str:
        """The last launched plan of a study."""
        return f"{self.plans}/{digest}.json"

    logs = "logs"  # the folder of the logs of trials

    def log(self, trial_id: str) -> str:
        """The log of one trial, text."""
        return f"{self.logs}/{trial_id}.log"

    stops = "stops"  # the folder of requests to stop

    def stop(self, resource: str) -> str:
        """The request to stop the launch that holds this lease."""
        return f"{self.stops}/{resource}.json"

    weights_folder, tables_folder, datasets_folder, checkpoints_folder = "trials", "teachers", "datasets", "checkpoints"
    _flat = (trial_rows, epoch_rows, copied_rows, leases, plans, logs, stops, datasets_folder)  # with files only
    _nested = (weights_folder, tables_folder, checkpoints_folder)  # with a folder for each trial
    folders = (*_flat, *_nested)  # every folder with files of a storage; it may contain other files too

    def parse(self, name: str) -> StoredFile | None:
        """What a file is, by its name; None if no file of a storage has such a name."""
        for kind, pattern in _NAMES.items():
            if match := pattern.fullmatch(name):
                groups = match.groupdict()
                trial_id, table = groups.get("trial", ""), groups.get("table")
                key = TableKey.parse(trial_id, table) if table else None
                return StoredFile(kind, trial_id, key) if key or not table else None
        return None

    def is_ours(self, name: str) -> bool:
        """Whether a file of a storage can have this name."""
        return self.parse(name) is not None

    def has_folder(self, folder: str) -> bool:
        """Whether a storage has files directly in this folder."""
        parent, _, name = folder.rpartition("/")
        return folder in (".", *self._flat) or (parent in self._nested and name != "")

    # Content.

    def list_tables(self) -> Iterator[TableKey]:
        """Every complete table."""
        names = {entry.name for entry in self.backend.list_files(self.tables_folder)}
        for name in sorted(names):
            if name.endswith(".json"):
                key = _parse_table_key(read_json(self, name))
                if key and self.table_facts(key) == name and self.table(key) in names:
                    yield key


def _parse_table_key(facts: Any) -> TableKey | None:
    """The key in the facts of a table; None if no plan could have made it."""
    try:
        key = codec.decode(TableKey, facts["key"])
        is_sound = is_trial_id(key.teacher_id) and key.outputs in _OUTPUTS and key.padding in PADDINGS
        return key if is_sound and key.crop_padding >= 0 and key.images > 0 else None
    except (TypeError, KeyError, codec.CodecError):
        return None


def _refuse_file(folder: Path) -> None:
    """Raises StorageError if the folder of a storage, or a folder that should contain it, is a file."""
    with suppress(OSError):  # a folder that cannot be examined is reported when it is read
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise StorageError(f"{str(nearest)!r} is a file, expected a folder; name another folder with --storage")


def encode_key(key: TableKey) -> dict[str, Any]:
    """A table's key as JSON data, as `Storage.list_tables` reads it."""
    facts: dict[str, Any] = codec.encode(key)
    return facts


def write_json(storage: Storage, name: str, data: Any) -> None:
    """Writes JSON in one step."""
    storage.backend.write(name, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def read_json(storage: Storage, name: str) -> Any:
    """The JSON in a file; None if there is no such file or it is damaged."""
    try:
        return json.loads(storage.backend.read(name))
    except (OSError, ValueError, RecursionError):
        return None
