"""Storages that contain a launch, for tests of the code that reads it: a teacher and three students."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from launch_events import planned, row

from orchestrator.monitor.study_status import StudyStatus
from orchestrator.records import EpochRecord, State
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire, trial_resource
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, PlannedTrial
from orchestrator.study.stored_studies import Launch, StoredStudy
from orchestrator.study.values import Resources

SINCE = datetime.now(UTC) - timedelta(minutes=10)
TEACHER = planned(0)
STUDENTS = [planned(no, teacher=TEACHER) for no in range(1, 4)]
TRIALS = [TEACHER, *STUDENTS]


def remember(
    storage: Storage, trials: list[PlannedTrial] = TRIALS, name: str = "tiny", since: datetime = SINCE
) -> StoredStudy:
    """A study that the storage remembers."""
    plan = Plan(name, "study.yaml", tuple(trials), Resources())
    launched = Launch("launch-abc", since, "node-1", "ray", "study.yaml", "", (), "data")
    stored_studies.store_plan(storage, plan, launched)
    return stored_studies.find(storage, name)


def write(storage: Storage, trial: PlannedTrial, state: State, error: str | None = None, ended: bool = True) -> None:
    """The row of a trial."""
    found = replace(row(trial, state, error), start_time=SINCE, seconds=10.0 if state is State.FINISHED else None)
    store.write_trial(storage, replace(found, end_time=SINCE + timedelta(seconds=12) if ended else None))


def epochs(storage: Storage, trial: PlannedTrial, count: int) -> None:
    """The first epochs of a trial, of 2 s each."""
    records = [EpochRecord(n, 0.1, 2.0, 2.0, None, 50.0, 1.0, 50.0 + n, None, 2.0, 999.0) for n in range(1, count + 1)]
    store.write_epochs(storage, trial.trial_id, records)


def stages(status: StudyStatus) -> list[str]:
    """The stage of each trial."""
    return [str(trial_status.stage) for trial_status in status.trials.values()]


@contextmanager
def running_launch(storage: Storage) -> Iterator[None]:
    """A launch under way: its teacher is finished, one student is being trained, one failed, one is queued."""
    remember(storage)
    write(storage, TEACHER, State.FINISHED)
    write(storage, STUDENTS[0], State.RUNNING, ended=False)
    epochs(storage, STUDENTS[0], 3)
    write(storage, STUDENTS[1], State.FAILED, "it broke")
    with ExitStack() as held:
        for name in ("launch-abc", trial_resource(STUDENTS[0].trial_id)):
            lease = acquire(storage, name)
            assert isinstance(lease, Lease)
            held.enter_context(lease)
        yield
