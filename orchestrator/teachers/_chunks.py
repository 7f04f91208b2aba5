"""A table under construction: chunks of it, each one file, which any number of workers build at the same time.

Finished chunks stay: after a kill, only the chunks that were being built are built again. The last worker joins them.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from orchestrator.errors import LeaseLost, StorageError, TeacherError
from orchestrator.records import TableKey
from orchestrator.storage.layout import FileKind, Storage
from orchestrator.storage.leases import acquire, table_resource

CHUNK = 50_000  # outputs in one: a view of all of CIFAR; it limits the memory, and the work that a kill costs
_PAUSE = (0.3, 0.7)  # seconds until the next check, while others build all remaining chunks

Compute = Callable[[int, int], bytes]  # the outputs from one number up to another, in the order of the table


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one table. `made_from` is everything that can change a byte of them, the device included."""

    storage: Storage
    key: TableKey
    made_from: dict[str, Any]
    width: int  # bytes of one output

    @property
    def outputs(self) -> int:
        """The number of outputs in the table: one for each view of each image."""
        return self.key.views * self.key.images

    def bounds(self) -> list[tuple[int, int]]:
        """The first output of each chunk, and the one after its last."""
        return [(start, min(start + CHUNK, self.outputs)) for start in range(0, self.outputs, CHUNK)]

    def names(self) -> list[str]:
        """The file of each chunk; chunks that were made from something else have other names."""
        text = json.dumps(self.made_from, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return [self.storage.table_slice(self.key, digest, number) for number in range(len(self.bounds()))]

    def missing(self) -> list[int]:
        """The numbers of the chunks whose files are missing or incomplete."""
        return self._missing(range(len(self.bounds())))

    def _missing(self, numbers: Sequence[int]) -> list[int]:
        names, bounds = self.names(), self.bounds()
        sizes = self.storage.backend.read_sizes([names[number] for number in numbers])
        expected = [(bounds[number][1] - bounds[number][0]) * self.width for number in numbers]
        return [number for number, size, complete in zip(numbers, sizes, expected, strict=True) if size != complete]

    def build(self, compute: Compute, check: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Builds missing chunks that no other worker is building, until none is missing or `is_done` returns true.

        `check` is called between two chunks and while others build the last ones; it may raise.
        """
        # In this order: the worker that joins the table deletes the chunks after the table exists.
        while (missing := self.missing()) and not is_done():
            check()
            # A random chunk: workers that all start at the same end would meet at every chunk.
            number = random.choice(missing)  # noqa: S311
            lease = acquire(self.storage, f"{table_resource(self.key)}-{number}")
            if lease is None:
                time.sleep(random.uniform(*_PAUSE) if len(missing) == 1 else 0.0)  # noqa: S311
                continue
            # A worker that was suspended leaves the chunk to the worker that took it over.
            with lease, suppress(LeaseLost):
                if self._missing([number]) and not is_done():
                    content = compute(*self.bounds()[number])
                    self._check_size(number, content)
                    lease.check()
                    self.storage.backend.write(self.names()[number], content)

    def _check_size(self, number: int, content: bytes) -> None:
        """Raises TeacherError for a chunk of another size than the table's: it would be built again for ever."""
        start, end = self.bounds()[number]
        if len(content) != (end - start) * self.width:
            raise TeacherError(
                f"{end - start:,} outputs of teacher {self.key.teacher_id} take {len(content):,} bytes, but table "
                f"{self.key.name} expects {self.width} for each; the widths that its model's family states are wrong: "
                "correct them in models/, or set teacher_cache: live"
            )

    def join(self, file: BinaryIO) -> None:
        """Appends all chunks to a file. Raises StorageError where one was removed."""
        for name in self.names():
            try:
                file.write(self.storage.backend.read(name))
            except FileNotFoundError:
                path = self.storage.backend.describe(name)
                raise StorageError(
                    f"{path} was removed while the table was built; launch again, which builds it again"
                ) from None

    def delete(self) -> None:
        """Deletes the chunks, and those of this table that were made from something else."""
        for entry in self.storage.backend.list_files(self.storage.teacher(self.key.teacher_id)):
            file = self.storage.parse(entry.name)
            if file and file.kind is FileKind.TABLE_SLICE and file.table == self.key:
                self.storage.backend.delete(entry.name)
