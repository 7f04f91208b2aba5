"""From a study file to its finished rows: what `kdctl launch` does, as functions for a notebook."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import executors
from orchestrator.catalog import integrity
from orchestrator.cluster.signals import handle_stops
from orchestrator.cluster.supervisor import end_in_time, is_supervised
from orchestrator.data.registry import FolderDataset
from orchestrator.errors import Interrupted, StorageError
from orchestrator.machine import paths
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.monitor.launch_events import end_event, one_at_a_time, start_event, with_precision
from orchestrator.monitor.sinks import Lines
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import stops
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, PlannedTrial, PlanState, make_plan, with_stored_state
from orchestrator.study.reader import load_study
from orchestrator.study.stored_studies import Launch
from orchestrator.teachers.damaged import drop_damaged

if TYPE_CHECKING:
    from orchestrator.execution.controller import Workload

DEFAULT_STORAGE = "runs"
DEFAULT_DATA = "data"


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """A study after its launch: every row of it, and how many trials this launch finished."""

    plan: Plan
    rows: tuple[TrialRecord, ...]
    trained: int

    @property
    def is_complete(self) -> bool:
        """Whether every trial is finished."""
        return len(self.rows) == len(self.plan.trials) and all(row.state is State.FINISHED for row in self.rows)


def plan_study(
    study_file: str | Path,
    storage: str | Path = DEFAULT_STORAGE,
    settings: Sequence[str] = (),
    text: str | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Plan:
    """The plan of a study file beside what its storage holds. Raises StudyError; writes nothing.

    The file is not read where its `text` is given. `on_note` is as for `load_study`.
    """
    place = Storage.at(storage)
    plan = make_plan(load_study(study_file, settings, text, open_weights=True, on_note=on_note))
    if warning := stored_studies.warn_of_other_file(place, plan):
        plan = replace(plan, warnings=(*plan.warnings, warning))
    trial_ids = [trial.trial_id for trial in plan.trials]  # a storage may hold many other studies
    return with_stored_state(plan, store.read_states(place, trial_ids), list(place.list_tables()))


def launch(
    study_file: str | Path,
    *,
    data: str | Path = DEFAULT_DATA,
    storage: str | Path = DEFAULT_STORAGE,
    address: str | None = None,
    inline: bool = False,
    executor: str = executors.DEFAULT,
    settings: Sequence[str] = (),
    max_concurrent: int | None = None,
    skip_failed: bool = False,
    on_event: EventListener | None = None,
    dashboard: bool = True,
    text: str | None = None,
) -> LaunchResult:
    """Trains what is not finished of a study; a file launched again goes on where the last launch ended.

    Trials that failed are tried again, unless `skip_failed`. Several launches may share a storage: each trial is
    trained by one of them. Raises StudyError, DataError, StorageError or ResourceError before anything is trained,
    StorageError where the storage fails later, and Interrupted after Ctrl-C, SIGTERM or `stops.request`. A trial that
    fails raises nothing: it is a row. `on_event` gets every event, one at a time; by default lines on standard error.
    `executor` is a name in `executors.EXECUTORS`; `inline` is short for that one. `address` and `dashboard` are for
    executors that take them. A file whose `text` is given is not read.
    """
    since = datetime.now(UTC)
    chosen = executors.get(name := "inline" if inline else executor)
    options = chosen.select_options({"address": address, "dashboard": dashboard})
    on_event = one_at_a_time(with_precision(on_event or Lines()))
    place = Storage.at(storage)
    plan, damaged = _drop_damaged(plan_study(study_file, storage, settings, text), place)
    to_do = _to_do(plan, skip_failed=skip_failed)
    launched = Launch.of(plan, to_do, since, settings, paths.local(data, "data folder"), name)
    on_event(event := start_event(plan, launched))
    for warning in (*plan.warnings, *damaged, *integrity.find_foreign(place)):
        on_event(Event(EventKind.NOTE, warning))

    def train(work: Workload) -> None:
        chosen.load()(replace(work, max_concurrent=max_concurrent, launch_event=event), on_event, **options)

    rows = _train(plan, to_do, place, launched, on_event, train)
    return LaunchResult(plan, tuple(rows), _count_trained(rows, to_do))


def _count_trained(rows: Sequence[TrialRecord], to_do: Sequence[PlannedTrial]) -> int:
    tried = {trial.trial_id for trial in to_do}
    return sum(row.trial_id in tried and row.state is State.FINISHED for row in rows)


def _rows(plan: Plan, storage: Storage) -> list[TrialRecord]:
    return store.read_trials(storage, [trial.trial_id for trial in plan.trials])


def _drop_damaged(plan: Plan, storage: Storage) -> tuple[Plan, list[str]]:
    """The plan once damaged teachers are removed, which are then to be trained again; and what was removed."""
    damaged = drop_damaged(plan, storage)
    if not damaged:
        return plan, []
    states = store.read_states(storage, [trial.trial_id for trial in plan.trials])
    return with_stored_state(plan, states, list(storage.list_tables())), damaged


def _to_do(plan: Plan, *, skip_failed: bool) -> list[PlannedTrial]:
    """What is not finished; with `skip_failed` neither what failed nor the students of a teacher that failed."""
    left = {trial.trial_id for trial in plan.trials if skip_failed and trial.state is PlanState.FAILED}
    return [
        trial
        for trial in plan.trials
        if trial.state is not PlanState.FINISHED and trial.trial_id not in left and trial.teacher_id not in left
    ]


def _train(
    plan: Plan,
    to_do: Sequence[PlannedTrial],
    storage: Storage,
    launched: Launch,
    on_event: EventListener,
    train: Callable[[Workload], None],
) -> list[TrialRecord]:
    """Trains what is to do, and tells how the launch ended. Returns every row of the study."""
    try:
        if to_do:
            with _workload(plan, to_do, storage, launched, on_event) as work:
                train(work)
        else:  # its name is printed, and means this plan from now on
            stored_studies.store_plan(storage, plan, launched)
    except Interrupted:
        with suppress(StorageError):
            on_event(end_event(plan, _rows(plan, storage), launched.since))
        raise
    rows = _rows(plan, storage)
    on_event(end_event(plan, rows, launched.since))
    return rows


@contextmanager
def _workload(
    plan: Plan, to_do: Sequence[PlannedTrial], storage: Storage, launched: Launch, on_event: EventListener
) -> Iterator[Workload]:
    """What an executor is to train, once the images are prepared; within, signals and `kdctl stop` end it early."""
    storage.prepare()
    on_event(Event(EventKind.PREPARING, "loading PyTorch"))  # which takes seconds
    from orchestrator.data.prepare import is_prepared, prepare_dataset
    from orchestrator.execution.controller import Workload
    from orchestrator.execution.job import make_jobs

    lease = acquire(storage, launched.resource)
    assert lease, "no other launch knows the name of this lease"
    ready = frozenset(trial.trial_id for trial in plan.trials if trial.state is PlanState.FINISHED)
    jobs = make_jobs(plan, to_do, storage, launched)
    work = Workload(jobs, ready, storage, plan.resources, lease)
    with lease, handle_stops(partial(_stop, work, on_event)), _listening(storage, launched, work.stop.set):
        lease.sweep()
        stored_studies.store_plan(storage, plan, launched)
        for name, dataset in sorted(_datasets(plan, to_do).items()):
            if not is_prepared(dataset, storage):
                on_event(Event(EventKind.PREPARING, f"decoding {name}"))
            prepare_dataset(dataset, Path(launched.data), storage)
        yield work


@contextmanager
def _listening(storage: Storage, launched: Launch, stop: Callable[[], None]) -> Iterator[None]:
    """While this lasts, anyone who sees the storage can ask the launch to stop, see `stops`."""
    ended = threading.Event()
    thread = stops.listen(storage, launched.resource, stop, ended)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        stops.clear(storage, launched.resource)


def _stop(work: Workload, on_event: EventListener, signal: str) -> None:
    """Ends a launch early, after the signal of that name."""
    if not work.started.is_set():  # nothing is trained yet, and what is being prepared is whole or not there
        raise Interrupted(f"{signal}: stopped before anything was trained")
    work.stop.set()
    # Not in this thread: the signal may have come while it was telling something.
    text = f"{signal}: stopping; running trials write a checkpoint first; a second signal ends the launch at once"
    threading.Thread(target=on_event, args=(Event(EventKind.NOTE, text),), daemon=True).start()
    if is_supervised():
        end_in_time()


def _datasets(plan: Plan, to_do: Sequence[PlannedTrial]) -> dict[str, str | FolderDataset]:
    """The datasets of some trials by the name that a row has for each."""
    configs = [trial.config for trial in to_do]
    return {c.dataset: plan.folders[c.folder.digest] if c.folder else c.dataset for c in configs}
