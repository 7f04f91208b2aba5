"""What the storage remembers of each study: the plan of its last launch, and how to launch it again."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator import codec, executors
from orchestrator.errors import KdctlError, StorageError
from orchestrator.machine import commits
from orchestrator.machine.paths import word
from orchestrator.records import TableKey, TrialRecord
from orchestrator.storage.layout import Storage, encode_key, read_json, write_json
from orchestrator.storage.leases import LAUNCH
from orchestrator.study import short_names
from orchestrator.study.plan import Plan, PlannedTrial, PlanState
from orchestrator.text import masked, nearest, printable


@dataclass(frozen=True, slots=True)
class Member:
    """A trial of a study: what a reader of the storage needs to know before the trial has a row.

    `teacher_mode` is where its teacher outputs come from: `table`, `live`, or None without a teacher. `is_cached` is
    true if it was finished before the launch. The fields after that are empty if an older kdctl stored the plan.
    """

    trial_id: str
    role: str
    title: str
    teacher_id: str | None
    epochs: int
    teacher_mode: str | None
    is_cached: bool
    method: str = ""
    dataset: str = ""
    student: str = ""
    teacher: str | None = None  # its model
    name: str = ""  # within the study, see `short_names.names`
    member_ids: tuple[str, ...] = ()  # of an ensemble

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The trials that have to finish before this one starts."""
        return (self.teacher_id,) if self.teacher_id else tuple(self.member_ids)

    @property
    def display_name(self) -> str:
        """Its name in a view of its study."""
        return self.name or self.title


@dataclass(frozen=True, slots=True)
class Launch:
    """The last launch of a study. `resource` names its lease, `settings` are its `--set` options, `since` is UTC.

    `left` are the trials that it does not retry, as they failed earlier or wait for one that did. `path` is the full
    path of its file (`path_of`); launches of earlier versions have none. `commit` is the commit that contains the file
    exactly as it was launched; None where that is not certain.
    """

    resource: str
    since: datetime
    host: str
    executor: str
    file: str
    text: str
    settings: tuple[str, ...]
    data: str
    left: tuple[str, ...] = ()
    path: str = ""
    commit: str | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        to_do: Sequence[PlannedTrial],
        since: datetime,
        settings: Sequence[str],
        data: Path,
        executor: str,
    ) -> Launch:
        """A launch of this process, of the trials `to_do`. Secrets do not belong in a study file; they are masked."""
        others = {trial.trial_id for trial in to_do} | {
            t.trial_id for t in plan.trials if t.state is PlanState.FINISHED
        }
        return cls(
            resource=f"{LAUNCH}{secrets.token_hex(6)}",
            since=since,
            host=socket.gethostname(),
            executor=executor,
            file=masked(plan.source),
            text=masked(plan.text),
            settings=tuple(map(masked, settings)),
            data=str(data),
            left=tuple(trial.trial_id for trial in plan.trials if trial.trial_id not in others),
            path=path_of(plan.source),
            commit=commits.of_file(Path(plan.source)),
        )


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A study that was launched with this storage: its trials in the order of the plan, and its last launch."""

    name: str
    members: tuple[Member, ...]
    launched: Launch


def members(plan: Plan) -> tuple[Member, ...]:
    """The trials of a plan, in its order."""
    names = short_names.names([trial.config for trial in plan.trials])
    return tuple(
        Member(
            trial.trial_id, trial.role, trial.title(), trial.teacher_id, trial.config.epochs, trial.teacher_cache,
            trial.state is PlanState.FINISHED, trial.config.method, trial.config.dataset, trial.config.student,
            trial.config.teacher.student if trial.config.teacher else None, name, trial.member_ids,
        )
        for trial, name in zip(plan.trials, names, strict=True)
    )  # fmt: skip


_STORED_NAMES = {"teacher_mode": "answers"}  # fields of Member that plans store under another name


def store_plan(storage: Storage, plan: Plan, launched: Launch) -> None:
    """Stores the plan of a study; it replaces the plan of the last launch. Raises StorageError."""
    facts = {
        "study": plan.study,
        "trials": {trial.trial_id: encode_key(trial.table) if trial.table else None for trial in plan.trials},
        "member_fields": [
            _STORED_NAMES.get(name, name) for name in Member.__slots__
        ],  # once, as a study may have thousands of members
        "members": [[getattr(member, name) for name in Member.__slots__] for member in members(plan)],
        "launched": codec.encode(launched),
    }
    means = {trial.trial_id: trial.tables()[:-1] for trial in plan.trials if len(trial.tables()) > 1}
    if means:
        facts["member_tables"] = {trial_id: list(map(encode_key, tables)) for trial_id, tables in means.items()}
    write_json(storage, storage.plan(_digest(plan.study)), facts)


def _digest(study: str) -> str:
    return hashlib.sha256(study.encode()).hexdigest()[:12]


def path_of(file: str) -> str:
    """The full path of a study file; empty for a pipe, and for the copy that a job on a cluster gets."""
    path = Path(file).resolve()
    return masked(str(path)) if path.is_file() and "KDCTL_COMMAND" not in os.environ else ""


def warn_of_other_file(storage: Storage, plan: Plan) -> str | None:
    """A warning if the storage has a study of this name from another file, not just an edited or moved one."""
    last = read_study(storage, plan.study)
    path = path_of(plan.source)
    if last is None or not path or last.launched.path in ("", path) or last.launched.text == masked(plan.text):
        return None
    if last.launched.host == socket.gethostname() and not Path(last.launched.path).is_file():
        return None  # it was moved here, and edited
    where = storage.backend.describe("")
    return (
        f"{printable(plan.source)}: study: warning: {where} already has a study {plan.study} from "
        f"another file, {printable(last.launched.path)}; a launch of this file takes over the name: results, report "
        "and status then show only the trials of this file, although trials of both files have this name in their "
        "column `study`; rename one of the studies"
    )


def read_study(storage: Storage, name: str) -> StoredStudy | None:
    """The study of this name; None where the storage has none, or its plan is damaged."""
    return _decode_study(read_json(storage, storage.plan(_digest(name))))


def list_studies(storage: Storage) -> list[StoredStudy]:
    """Every study of a storage, the last launched first; damaged plans are left out."""
    found = [
        _decode_study(read_json(storage, entry.name))
        for entry in storage.backend.list_files(storage.plans)
        if storage.is_ours(entry.name)
    ]
    return sorted((study for study in found if study), key=lambda study: study.launched.since, reverse=True)


@dataclass(frozen=True, slots=True)
class StudyRows:
    """The rows of one study in the order of its plan; `study` is None for rows that belong to no study any more."""

    study: str | None
    rows: tuple[TrialRecord, ...]


@dataclass(frozen=True)
class Membership:
    """Which trials belong to each study: the ids of its last plan, in their order, by the study's name."""

    plans: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, storage: Storage) -> Membership:
        """The membership of all studies that a storage remembers."""
        plans = {study.name: tuple(member.trial_id for member in study.members) for study in list_studies(storage)}
        return cls(dict(sorted(plans.items())))

    @cached_property
    def _studies(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for study, trial_ids in self.plans.items():
            for trial_id in trial_ids:
                found.setdefault(trial_id, []).append(study)
        return found

    def studies(self, trial_id: str, study: str) -> list[str]:
        """The names of the studies that a trial belongs to; `study` is the study that it was trained for first.

        That study counts even if the storage has no plan of it, as in storages of older versions.
        """
        own = [] if study in self.plans else [study]
        return sorted({*self._studies.get(trial_id, ()), *own})

    def split(self, rows: Iterable[TrialRecord]) -> list[StudyRows]:
        """Rows by study, in the order of names and plans; last the rows that belong to no study any more."""
        found: dict[str, list[TrialRecord]] = {}
        unclaimed = []
        for row in sorted(rows, key=lambda row: (row.study, row.no)):
            names = self.studies(row.trial_id, row.study)
            for name in names:
                found.setdefault(name, []).append(row)
            if not names:
                unclaimed.append(row)
        parts = [StudyRows(name, tuple(self._sort(name, found[name]))) for name in sorted(found)]
        return [*parts, *([StudyRows(None, tuple(unclaimed))] if unclaimed else [])]

    def _sort(self, study: str, rows: list[TrialRecord]) -> list[TrialRecord]:
        positions = {trial_id: position for position, trial_id in enumerate(self.plans.get(study, ()))}
        return sorted(rows, key=lambda row: positions.get(row.trial_id, 0))


def find(storage: Storage, name: str | None = None) -> StoredStudy:
    """Finds a study by its name, or the study that was launched last. Raises KdctlError where there is none."""
    if name is not None and (study := read_study(storage, name)):
        return study
    known = list_studies(storage)
    if not known:
        raise KdctlError(
            f"{storage.backend.describe('')} holds no study yet; launch one with `kdctl launch FILE`, or name its "
            "storage with --storage"
        )
    if name is None:
        return known[0]
    names = [study.name for study in known]
    raise KdctlError(f"no study {name!r} in this storage; there is {', '.join(names[:20])}; {nearest(name, names)}")


# The order of a member's values in plans of a kdctl that did not store their names; it never changes.
_FIRST_FIELDS = (
    "trial_id", "role", "title", "teacher_id", "epochs", "answers", "is_cached",
    "method", "dataset", "student", "teacher", "name",
)  # fmt: skip


def _decode_member(values: Mapping[str, Any]) -> Member:
    """A member from its values by name; values that only another version of kdctl has are ignored. Raises TypeError."""
    stored = {name: _STORED_NAMES.get(name, name) for name in Member.__slots__}
    found = {name: values[key] for name, key in stored.items() if key in values}
    return Member(**{**found, "member_ids": tuple(found.get("member_ids", ()))})


def _decode_study(data: Any) -> StoredStudy | None:
    try:
        names = data.get("member_fields", _FIRST_FIELDS)
        trials = tuple(_decode_member(dict(zip(names, values, strict=False))) for values in data["members"])
        launched = codec.decode(Launch, {"settings": [], **data["launched"]})
        if not isinstance(data["study"], str) or launched.since.tzinfo is None:
            return None
        return StoredStudy(data["study"], trials, launched)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def read_table_keys(storage: Storage, name: str) -> Iterator[tuple[str, TableKey]]:
    """The trials of a stored study that use teacher tables, each with a key; `name` is the name of the plan's file.

    Raises StorageError where the file is damaged: without it, it is not known which tables are in use.
    """
    try:
        data: Mapping[str, Any] = read_json(storage, name)
        used = [(trial_id, facts) for trial_id, facts in data["trials"].items() if facts]
        used += [(trial_id, facts) for trial_id, own in data.get("member_tables", {}).items() for facts in own]
        yield from [(trial_id, codec.decode(TableKey, facts)) for trial_id, facts in used]
    except (TypeError, KeyError, AttributeError, codec.CodecError):
        raise StorageError(
            f"{storage.backend.describe(name)} is damaged; expected the plan of a study, which lists the tables "
            "that it uses; launch the study again, or remove that file if nobody needs it"
        ) from None


def command(study: StoredStudy) -> list[str]:
    """The words of the command line that launches a study again."""
    launched = study.launched
    settings = [word for setting in launched.settings for word in ("--set", setting)]
    data = [] if launched.data == "data" else ["--data", launched.data]
    return ["kdctl", "launch", word(launched.file), *data, *settings, *executors.arguments(launched.executor)]
