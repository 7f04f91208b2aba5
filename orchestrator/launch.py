"""From a study file to its finished rows: what `kdctl launch` does, as functions for Python programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import executors
from orchestrator.catalog import integrity
from orchestrator.catalog.edits import describe_edits
from orchestrator.cluster.launch_supervisor import end_in_time, is_supervised
from orchestrator.cluster.signals import handle_stops
from orchestrator.data.registry import OwnDataset
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

_SOON = 1.0  # seconds, in which missing files are noticed
DEFAULT_STORAGE = "runs"
DEFAULT_DATA = "data"


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """A study after its launch: all its rows, and how many trials this launch finished."""

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
    """The plan of a study file, with the state that the storage has of each trial. Raises StudyError; writes nothing.

    The file is not read if its `text` is given. `on_note` is as for `load_study`.
    """
    opened_storage = Storage.at(storage)
    plan = make_plan(load_study(study_file, settings, text, open_inputs=True, on_note=on_note))
    if warning := stored_studies.warn_of_other_file(opened_storage, plan):
        plan = replace(plan, warnings=(*plan.warnings, warning))
    trial_ids = [trial.trial_id for trial in plan.trials]  # a storage may hold many other studies
    states, tables = store.read_states(opened_storage, trial_ids), list(opened_storage.list_tables())
    plan = with_stored_state(plan, states, tables)
    return replace(plan, warnings=(*plan.warnings, *describe_edits(opened_storage, plan)))


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
    """Trains the unfinished trials of a study; launching a file again resumes where the last launch ended.

    Trials that failed are tried again, unless `skip_failed`. Several launches may share a storage: each trial is
    trained by one of them. Raises StudyError, DataError, StorageError or ResourceError before anything is trained,
    StorageError if the storage fails later, and Interrupted after Ctrl-C, SIGTERM or `stops.request`. A trial that
    fails raises nothing: it is a row. `on_event` gets every event, one at a time; by default lines on standard error.
    `executor` is a name in `executors.EXECUTORS`; `inline` is short for the executor of that name. `address` and
    `dashboard` are for executors that use them. The file is not read if its `text` is given.
    """
    since = datetime.now(UTC)
    chosen = executors.get(name := "inline" if inline else executor)
    options = chosen.select_options({"address": address, "dashboard": dashboard})
    on_event = one_at_a_time(with_precision(on_event or Lines()))
    opened_storage = Storage.at(storage)
    plan, damaged = _drop_damaged(
        plan_study(study_file, storage, settings, text, lambda note: on_event(Event(EventKind.NOTE, note))),
        opened_storage,
    )
    to_do = _select_trials(plan, skip_failed=skip_failed)
    launched = Launch.of(plan, to_do, since, settings, paths.local(data, "data folder"), name)
    on_event(event := start_event(plan, launched))
    for warning in (*plan.warnings, *damaged, *integrity.find_foreign(opened_storage)):
        on_event(Event(EventKind.NOTE, warning))

    def train(work: Workload) -> None:
        chosen.load()(replace(work, max_concurrent=max_concurrent, launch_event=event), on_event, **options)

    rows = _train(plan, to_do, opened_storage, launched, on_event, train)
    return LaunchResult(plan, tuple(rows), _count_trained(rows, to_do))


def _count_trained(rows: Sequence[TrialRecord], to_do: Sequence[PlannedTrial]) -> int:
    trial_ids = {trial.trial_id for trial in to_do}
    return sum(row.trial_id in trial_ids and row.state is State.FINISHED for row in rows)


def _read_rows(plan: Plan, storage: Storage) -> list[TrialRecord]:
    return store.read_trials(storage, [trial.trial_id for trial in plan.trials])


def _drop_damaged(plan: Plan, storage: Storage) -> tuple[Plan, list[str]]:
    """Removes damaged teachers; returns the plan that trains them again, and a message about each."""
    damaged: list[str] = []
    while found := drop_damaged(plan, storage):  # a teacher that is trained again needs the weights of its own teacher
        damaged += found
        states = store.read_states(storage, [trial.trial_id for trial in plan.trials])
        plan = with_stored_state(plan, states, list(storage.list_tables()))
    return plan, damaged


def _select_trials(plan: Plan, *, skip_failed: bool) -> list[PlannedTrial]:
    """The unfinished trials; with `skip_failed`, without failed trials and everything below a failed teacher."""
    skipped: set[str] = set()
    selected = []
    for trial in plan.trials:  # teachers before their students
        if trial.state is PlanState.FINISHED:
            continue
        if skip_failed and (trial.state is PlanState.FAILED or not skipped.isdisjoint(trial.waits_for)):
            skipped.add(trial.trial_id)
        else:
            selected.append(trial)
    return selected


def _train(
    plan: Plan,
    to_do: Sequence[PlannedTrial],
    storage: Storage,
    launched: Launch,
    on_event: EventListener,
    train: Callable[[Workload], None],
) -> list[TrialRecord]:
    """Trains the given trials, and reports how the launch ended. Returns all rows of the study."""
    try:
        if to_do:
            with _prepare_workload(plan, to_do, storage, launched, on_event) as work:
                train(work)
        else:  # later commands find this plan by the name of the study
            stored_studies.store_plan(storage, plan, launched)
    except Interrupted:
        with suppress(StorageError):
            on_event(end_event(plan, _read_rows(plan, storage), launched.since))
        raise
    rows = _read_rows(plan, storage)
    on_event(end_event(plan, rows, launched.since))
    with suppress(StorageError):  # it only makes reading faster
        store.compact(storage)
    return rows


@contextmanager
def _prepare_workload(
    plan: Plan, to_do: Sequence[PlannedTrial], storage: Storage, launched: Launch, on_event: EventListener
) -> Iterator[Workload]:
    """Yields the work of an executor while its images are prepared; within, signals and `kdctl stop` end it early."""
    storage.prepare()
    on_event(Event(EventKind.PREPARING, "loading PyTorch"))  # takes seconds
    from orchestrator.data.prepare import is_prepared
    from orchestrator.execution.controller import Workload
    from orchestrator.execution.job import make_jobs

    lease = acquire(storage, launched.resource)
    assert lease, "no other launch uses this resource"
    ready = frozenset(trial.trial_id for trial in plan.trials if trial.state is PlanState.FINISHED)
    jobs = make_jobs(plan, to_do, storage, launched)
    images: Future[None] = Future()
    work = Workload(jobs, ready, storage, plan.resources, lease, wait_for_images=images.result)
    with lease, handle_stops(partial(_stop, work, on_event)), _handle_requests(storage, launched, work.stop.set):
        lease.sweep()
        stored_studies.store_plan(storage, plan, launched)
        missing = {n: each for n, each in _find_datasets(plan, to_do).items() if not is_prepared(each, storage)}
        _start(partial(_prepare_images, missing, Path(launched.data), storage, on_event), images)
        if wait([images], _SOON).done:  # files that are not there are reported before Ray starts
            images.result()
        yield work


def _start(work: Callable[[], None], outcome: Future[None]) -> None:
    """Runs some work in a thread that does not keep the process alive."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, daemon=True).start()


def _prepare_images(
    missing: Mapping[str, str | OwnDataset], data: Path, storage: Storage, on_event: EventListener
) -> None:
    from orchestrator.data.prepare import prepare_dataset

    for name, dataset in sorted(missing.items()):
        on_event(Event(EventKind.PREPARING, f"decoding {name}"))
        prepare_dataset(dataset, data, storage)


@contextmanager
def _handle_requests(storage: Storage, launched: Launch, stop: Callable[[], None]) -> Iterator[None]:
    """Within, a request in the storage stops the launch, see `stops`."""
    ended = threading.Event()
    thread = stops.listen(storage, launched.resource, stop, ended)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        stops.clear(storage, launched.resource)


def _stop(work: Workload, on_event: EventListener, signal: str) -> None:
    """Stops a launch early, after the signal with this name."""
    if not work.started.is_set():  # nothing is trained yet, and prepared files are complete or missing
        raise Interrupted(f"{signal}: stopped before anything was trained")
    work.stop.set()
    # In another thread, because the signal may have interrupted `on_event` in this one.
    text = f"{signal}: stopping; running trials write a checkpoint first; a second signal ends the launch at once"
    threading.Thread(target=on_event, args=(Event(EventKind.NOTE, text),), daemon=True).start()
    if is_supervised():
        end_in_time()


def _find_datasets(plan: Plan, to_do: Sequence[PlannedTrial]) -> dict[str, str | OwnDataset]:
    """The datasets of the given trials, by their names in rows."""
    configs = [trial.config for trial in to_do]
    return {c.dataset: plan.folders[c.folder.digest] if c.folder else c.dataset for c in configs}
