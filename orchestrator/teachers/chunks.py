"""A teacher table under way: slices of it, each one file, which any number of workers build side by side.

What is built stays: after a kill only the slices that were in hand are built again. The last one puts them together.
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

SLICE = 50_000  # answers in one: a view of all of CIFAR, and a bound on the memory and the work that a kill costs
_PAUSE = (0.3, 0.7)  # seconds before another look, where others build all that is left

Build = Callable[[int, int], bytes]  # the answers from one number up to another, in the order of the table


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of one table. `made_from` is everything that can change a byte of them, where they are made too."""

    storage: Storage
    key: TableKey
    made_from: dict[str, Any]
    width: int  # bytes of one answer

    @property
    def answers(self) -> int:
        """How many answers the table holds: one a view of an image."""
        return self.key.views * self.key.images

    def bounds(self) -> list[tuple[int, int]]:
        """Where each slice begins and ends, in answers."""
        return [(start, min(start + SLICE, self.answers)) for start in range(0, self.answers, SLICE)]

    def names(self) -> list[str]:
        """The file of each slice; slices made from something else have other names."""
        text = json.dumps(self.made_from, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return [self.storage.table_slice(self.key, digest, number) for number in range(len(self.bounds()))]

    def missing(self) -> list[int]:
        """The numbers of those that are not there whole."""
        return self._missing(range(len(self.bounds())))

    def _missing(self, numbers: Sequence[int]) -> list[int]:
        names, bounds = self.names(), self.bounds()
        sizes = self.storage.backend.read_sizes([names[number] for number in numbers])
        wanted = [(bounds[number][1] - bounds[number][0]) * self.width for number in numbers]
        return [number for number, size, whole in zip(numbers, sizes, wanted, strict=True) if size != whole]

    def build(self, build: Build, check: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Builds what is missing and nobody else has in hand, until nothing is or `is_done` says so.

        `check` is called between two slices and while others build the last ones; it may raise.
        """
        # Asked in this order: who puts the table together removes the slices once it is there.
        while (missing := self.missing()) and not is_done():
            check()
            # Any of them: who begins at the same end as the others would meet them at every slice.
            number = random.choice(missing)  # noqa: S311
            lease = acquire(self.storage, f"{table_resource(self.key)}-{number}")
            if lease is None:
                time.sleep(random.uniform(*_PAUSE) if len(missing) == 1 else 0.0)  # noqa: S311
                continue
            # A worker that stood still leaves the slice to who took it over meanwhile.
            with lease, suppress(LeaseLost):
                if self._missing([number]) and not is_done():
                    content = build(*self.bounds()[number])
                    self._check_size(number, content)
                    lease.check()
                    self.storage.backend.write(self.names()[number], content)

    def _check_size(self, number: int, content: bytes) -> None:
        """Raises TeacherError for a chunk of another size than the table's: it would be built without end."""
        start, end = self.bounds()[number]
        if len(content) != (end - start) * self.width:
            raise TeacherError(
                f"{end - start:,} outputs of teacher {self.key.teacher_id} take {len(content):,} bytes, but table "
                f"{self.key.name} expects {self.width} for each; the widths that its model's family states are wrong: "
                "correct them in models/, or set teacher_cache: live"
            )

    def join(self, file: BinaryIO) -> None:
        """Appends all of them to a file. Raises StorageError where one is gone."""
        for name in self.names():
            try:
                file.write(self.storage.backend.read(name))
            except FileNotFoundError:
                shown = self.storage.backend.describe(name)
                raise StorageError(f"{shown} was removed meanwhile; launch again, which builds it anew") from None

    def drop(self) -> None:
        """Removes them, and those of this table that were made from something else."""
        for entry in self.storage.backend.list_files(self.storage.teacher(self.key.teacher_id)):
            file = self.storage.parse(entry.name)
            if file and file.kind is FileKind.TABLE_SLICE and file.table == self.key:
                self.storage.backend.delete(entry.name)
