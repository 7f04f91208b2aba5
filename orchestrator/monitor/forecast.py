"""How long the trials of a plan take on this machine: their counted operations over the speed of finished trials."""

from __future__ import annotations

import math
import socket
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from orchestrator import models
from orchestrator.codec import CodecError
from orchestrator.data.registry import facts_of_trial, stored_facts
from orchestrator.dataset import Dataset
from orchestrator.errors import StorageError
from orchestrator.monitor.eta import ROUGH, Eta, count_training, format_eta
from orchestrator.records import State, TableKey, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import BUILD_COST, Plan, PlannedTrial, PlanState

_LATEST = 64  # rows that are read: a storage may hold thousands


def predict_time(plan: Plan, storage: Storage) -> str:
    """How long the unfinished trials of a plan take on this machine, for a person; empty if none is left.

    Only finished trials of this machine count, on the device that it used last. Raises StorageError.
    """
    left = [trial for trial in plan.trials if trial.state is not PlanState.FINISHED]
    if not left:
        return ""
    rows = _select_rows(_read_latest(storage), socket.gethostname())
    if not rows:
        return "time on this machine: unknown until a trial has finished here"
    eta = estimate_plan(plan, rows, set(storage.list_tables()))
    trials = f"{len(rows)} finished trial{'s' * (len(rows) > 1)}"
    return f"one trial after the other on {rows[0].device}: {format_eta(eta)}, at the speed of {trials}"


def _read_latest(storage: Storage) -> list[TrialRecord]:
    """The rows that were written last; damaged ones are left out."""
    entries = [entry for entry in storage.backend.list_files(storage.trial_rows) if storage.is_ours(entry.name)]
    if not entries:
        return []  # Arrow converts even nothing only after it has imported pandas, if that is installed
    entries = sorted(entries, key=lambda entry: entry.modified, reverse=True)[:_LATEST]
    ids = [PurePosixPath(entry.name).stem for entry in entries]
    with suppress(StorageError):
        return store.read_trials(storage, ids)
    found = []
    for trial_id in ids:
        with suppress(StorageError):
            found += store.read_trials(storage, [trial_id])
    return found


def _select_rows(rows: Iterable[TrialRecord], host: str) -> list[TrialRecord]:
    """Rows of trials that a machine trained to their end, on the device that it used last."""
    own = [row for row in rows if row.state is State.FINISHED and row.host == host and row.seconds and row.end_time]
    latest = max(own, key=lambda row: str(row.end_time), default=None)
    return [row for row in own if latest and row.device == latest.device]


def estimate_plan(plan: Plan, rows: Iterable[TrialRecord], tables: Collection[TableKey]) -> Eta:
    """The seconds that the unfinished trials of a plan and their missing tables take one after the other."""
    measured = _Speeds(rows)
    left = [trial for trial in plan.trials if trial.state is not PlanState.FINISHED]
    spans = [measured.predict(work) for work in (*map(_work_of_trial, left), *_list_builds(plan, left, tables))]
    highs = [span.high for span in spans]
    return Eta(sum(span.low for span in spans), None if None in highs else sum(high or 0.0 for high in highs))


def count_operations(trial: PlannedTrial) -> float:
    """The operations of a trial, by which trials can be ordered; infinite for a model whose operations are unknown."""
    work = _work_of_trial(trial)
    return work.operations if work.is_counted else math.inf


@dataclass(frozen=True, slots=True)
class _Work:
    """Operations, and the kind of work: at the same kind the speed is the same, at others it is only similar.

    If the operations of a model are unknown, those here are relative to one forward pass of it.
    """

    kind: tuple[str, ...]
    operations: float
    is_counted: bool = True

    @property
    def similar_kinds(self) -> tuple[tuple[str, ...], ...]:
        """The kinds of work whose speed is a rough guide, the most similar first."""
        return (self.kind[1:3], ()) if self.is_counted else ()


def _work_of_trial(trial: PlannedTrial) -> _Work:
    config = trial.config
    teacher = config.teacher.student if config.teacher and trial.teacher_cache == "live" else ""
    kind = (config.method, config.dataset, config.student, trial.teacher_cache or "", teacher)
    return _count(kind, config.epochs, facts_of_trial(config), config.recipe())


def _work_of_row(row: TrialRecord) -> _Work:
    mode = row.recipe.get("teacher_answers") or ""
    kind = (row.method, row.dataset, row.student, mode, row.teacher or "" if mode == "live" else "")
    return _count(kind, row.nepoch, stored_facts(row.dataset, row.recipe), row.recipe)


def _count(kind: tuple[str, ...], epochs: int, facts: Dataset, recipe: Any) -> _Work:
    """The work of so many epochs: training steps, and a test of the student after each epoch."""
    *_, student, _, teacher = kind
    train = (recipe.get("limit_train") or facts.train) - (recipe.get("holdout") or 0)
    test = (recipe.get("limit_test") or facts.test) + (recipe.get("holdout") or 0)
    image = facts.classes, facts.side
    try:
        per_step, per_test = count_training(student, teacher or None, *image), models.multiply_adds(student, *image)
    except ValueError:
        return _Work(kind, float(epochs * (3 * train + test)), is_counted=False)
    return _Work(kind, float(epochs * (train * per_step + test * per_test)))


def _list_builds(plan: Plan, left: Iterable[PlannedTrial], tables: Collection[TableKey]) -> Iterator[_Work]:
    """The tables that trials read and the storage lacks. A table of means is computed from others."""
    teachers = {trial.trial_id: trial.config for trial in plan.trials}
    for table in {key for trial in left for key in trial.tables()}.difference(tables):
        teacher = teachers.get(table.teacher_id)
        if teacher is None or teacher.members:
            continue
        facts = facts_of_trial(teacher)
        with suppress(ValueError):  # a model of the user's: its trials leave the time open
            cost = models.multiply_adds(teacher.student, facts.classes, facts.side)
            yield _Work(("table",), BUILD_COST * table.views * table.images * cost)


class _Speeds:
    """The operations per second of each kind of work that was measured, of each model, and of all together."""

    def __init__(self, rows: Iterable[TrialRecord]) -> None:
        self._sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for row in rows:
            with suppress(KeyError, CodecError):  # a dataset that this version does not know
                work = _work_of_row(row)
                for kind in (work.kind, *work.similar_kinds):
                    self._sums[kind][0] += work.operations
                    self._sums[kind][1] += row.seconds or 0.0

    def predict(self, work: _Work) -> Eta:
        """The seconds that some work takes: nothing or more if nothing like it was measured."""
        if not work.operations:
            return Eta(0.0, 0.0)
        for kind in (work.kind, *work.similar_kinds):
            if kind in self._sums:
                operations, measured = self._sums[kind]
                seconds, rough = work.operations * measured / operations, 1.0 if kind == work.kind else ROUGH
                return Eta(seconds / rough, seconds * rough)
        return Eta(0.0, None)
