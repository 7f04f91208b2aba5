"""The teachers in a storage: their accuracy and size, the studies that use them, and the check of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator import codec
from orchestrator.catalog.trial_ids import choose
from orchestrator.errors import KdctlError
from orchestrator.records import State, TableKey, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import labels


@dataclass(frozen=True, slots=True)
class StoredTeacher:
    """A teacher of a storage. `bytes` are its weights and tables; `users` are its students, by study."""

    row: TrialRecord
    tables: tuple[TableKey, ...]
    bytes: int
    users: dict[str, int]

    @property
    def teacher_id(self) -> str:
        """The teacher's trial id."""
        return self.row.trial_id

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs."""
        return {
            "teacher_id": self.teacher_id,
            "model": self.row.student,
            "dataset": self.row.dataset,
            "setting": labels.of_row(self.row),
            "seed": self.row.seed,
            "acc": self.row.acc,
            "last_acc": self.row.last_acc,
            "bytes": self.bytes,
            "tables": [key.name for key in self.tables],
            "used_by": self.users,
        }


def list_teachers(storage: Storage) -> list[StoredTeacher]:
    """Every finished trial that is the teacher of some row or table. Raises StorageError for a damaged row."""
    rows = {row.trial_id: row for row in store.read_trials(storage)}
    tables: dict[str, list[TableKey]] = {}
    for key in storage.list_tables():
        tables.setdefault(key.teacher_id, []).append(key)
    users: dict[str, dict[str, int]] = {teacher_id: {} for teacher_id in tables}
    for row in rows.values():
        if row.teacher_id:
            of_study = users.setdefault(row.teacher_id, {})
            of_study[row.study] = of_study.get(row.study, 0) + 1
        for member in row.recipe.get("members") or ():
            users.setdefault(codec.decode(TrialConfig, member).trial_id(), {})
    return [
        _make_stored_teacher(rows[teacher_id], tables.get(teacher_id, []), users[teacher_id], storage)
        for teacher_id in sorted(users)
        if teacher_id in rows and rows[teacher_id].state is State.FINISHED
    ]


def _make_stored_teacher(
    row: TrialRecord, tables: Sequence[TableKey], users: dict[str, int], storage: Storage
) -> StoredTeacher:
    sizes = storage.backend.read_sizes([storage.weights(row.trial_id), *map(storage.table, tables)])
    return StoredTeacher(row, tuple(tables), sum(size or 0 for size in sizes), users)


@dataclass(frozen=True, slots=True)
class TableCheck:
    """A table that matches its teacher; `largest_difference` is over the sample."""

    table: TableKey
    largest_difference: float


def verify_teacher(teacher_id: str, storage: Storage) -> list[TableCheck]:
    """Compares each table of a teacher with its live outputs on random views.

    `teacher_id` may be shortened while it is unique. Raises KdctlError where there is no such teacher, and
    TeacherError where a table is wrong.
    """
    import torch

    from orchestrator.data import prepare, tensors
    from orchestrator.teachers import tables

    stored = _find(teacher_id, list_teachers(storage))
    config = _make_config(stored.row)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks = []
    for key in stored.tables:
        prepare.require_prepared(config, storage)
        # The images of a table are the first of the canonical order, whatever limit and holdout made their number.
        images = tensors.load(replace(config, limit_train=key.images, limit_test=None, holdout=0), storage, device)
        checks.append(TableCheck(key, tables.verify(key, config, images, storage, device)))
    return checks


def _find(text: str, teachers: list[StoredTeacher]) -> StoredTeacher:
    if not teachers:
        raise KdctlError("this storage holds no teacher yet; launch a study first, or name its storage with --storage")
    known = {stored.teacher_id: stored for stored in teachers}

    def list_titles(ids: Sequence[str]) -> list[str]:
        return [labels.title(known[teacher_id].row) for teacher_id in ids]

    return known[choose(text.strip().lower(), list(known), list_titles, "teacher", "`kdctl teachers` lists them")]


def _make_config(row: TrialRecord) -> TrialConfig:
    """A teacher's config from its row; the recipe in it also contains how the teacher was run."""
    columns = {"method": row.method, "student": row.student, "seed": row.seed}
    shared = {"dataset": row.dataset, **({"folder": row.recipe["folder"]} if "folder" in row.recipe else {})}
    return codec.decode(TrialConfig, _fill({**row.recipe, **columns}, row.teacher, shared))


def _fill(recipe: Mapping[str, Any], model: str | None, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config and of its teachers; `model` is that of its teacher, `shared` are fields of all."""
    found = {name: value for name, value in recipe.items() if name in TrialConfig.__slots__}
    if taught := recipe.get("teacher"):
        teacher = {"method": "base", **taught, "student": model}
        found["teacher"] = _fill(teacher, (taught.get("teacher") or {}).get("student"), shared)
    return {**found, **shared}
