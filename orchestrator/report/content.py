"""The data of a report: a study's trials in the order of its plan, their results, and how to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from orchestrator import models
from orchestrator.catalog import lookup
from orchestrator.data.registry import stored_facts
from orchestrator.errors import KdctlError, StorageError
from orchestrator.machine import commits, paths
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import labels, stored_studies
from orchestrator.study.stored_studies import Member, StoredStudy

MISSING = "not started"


@dataclass(frozen=True, slots=True)
class Source:
    """The study file of a report: its text, and the command line that launches it.

    `commit` contains the file as launched, or as it is now if it never was; None if that is not certain.
    """

    command: tuple[str, ...]
    text: str
    launched: datetime | None  # UTC
    host: str | None
    commit: str | None = None

    @classmethod
    def of(cls, study: StoredStudy) -> Source:
        """The source of a study's last launch."""
        launched = study.launched
        return cls(tuple(stored_studies.command(study)), launched.text, launched.since, launched.host, launched.commit)


@dataclass(frozen=True)
class Facts:
    """The data of a report at one moment. `members` are the planned trials, `rows` those that started, by id."""

    name: str
    members: tuple[Member, ...]
    rows: Mapping[str, TrialRecord]
    source: Source | None
    storage: Storage
    now: datetime

    @cached_property
    def ordered(self) -> list[TrialRecord]:
        """The rows, in the order of the members."""
        return [self.rows[member.trial_id] for member in self.members if member.trial_id in self.rows]

    @cached_property
    def teacher_ids(self) -> frozenset[str]:
        """The trials that are teachers of others in this report."""
        return frozenset(teacher_id for member in self.members for teacher_id in member.waits_for)

    def state(self, member: Member) -> str:
        """The state of a trial; `MISSING` if it has no row."""
        row = self.rows.get(member.trial_id)
        return row.state.value if row else MISSING

    @cached_property
    def counts(self) -> Counter[str]:
        """How many trials are in which state."""
        return Counter(map(self.state, self.members))

    @property
    def finished(self) -> int:
        """How many trials are finished."""
        return self.counts[State.FINISHED.value]

    def log(self, trial_id: str) -> str:
        """Where the log of a trial is."""
        return self.storage.backend.describe(self.storage.log(trial_id))


def find_facts(storage: Storage, study: str | None, settings: Sequence[str] = ()) -> Facts:
    """The facts about a study file with `settings`, a study by name, the last study, or a storage without any.

    Raises KdctlError if there is no such study, or no trial.
    """
    now = datetime.now(UTC)
    if study is None:
        last = next(iter(stored_studies.list_studies(storage)), None)
        if last is None:
            return gather(storage, "everything in the storage", None, None, now)
        return gather(storage, last.name, last.members, Source.of(last), now)
    found = lookup.find_study(storage, study, settings)
    if found.text is not None:
        words = [word for setting in settings for word in ("--set", setting)]
        command = ("kdctl", "launch", paths.word(study), *words)
        source = Source(command, found.text, None, None, commits.of_file(Path(study)))
    else:
        source = Source.of(stored_studies.find(storage, study))
    return gather(storage, found.name, found.members, source, now)


def gather(
    storage: Storage, name: str, members: Sequence[Member] | None, source: Source | None, now: datetime
) -> Facts:
    """Reads the data of a report; with `members` None, of everything in the storage.

    Raises KdctlError if there is no trial, StorageError if a row is damaged.
    """
    trial_ids = None if members is None else [member.trial_id for member in members]
    rows = store.read_trials(storage, trial_ids)
    for row in rows:
        if not _is_sound(row):
            path = storage.backend.describe(storage.trial_row(row.trial_id))
            raise StorageError(f"{path} holds a damaged row; launch its study again, which trains this trial again")
    if members is None:
        rows.sort(key=lambda row: (row.study, row.no))
        members = [_member(row) for row in rows]
    if not members:
        raise KdctlError(
            f"{storage.backend.describe('')} holds no trial yet; launch a study with `kdctl launch FILE`, or name its "
            "storage with --storage"
        )
    return Facts(name, tuple(members), {row.trial_id: row for row in rows}, source, storage, now)


def _is_sound(row: TrialRecord) -> bool:
    """Whether a row names known models and a known dataset, as every row that kdctl writes does."""
    try:
        for model in filter(None, (row.student, row.teacher)):
            models.title(model)
        stored_facts(row.dataset, row.recipe)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _member(row: TrialRecord) -> Member:
    """The member for a row that belongs to no stored study."""
    answers = row.recipe.get("teacher_answers")
    is_cached = row.state is State.FINISHED
    title, work = labels.title(row), (row.method, row.dataset, row.student, row.teacher)
    return Member(row.trial_id, "trial", title, row.teacher_id, row.nepoch, answers, is_cached, *work)
