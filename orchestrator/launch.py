"""From a study file to its finished rows: what `kdctl launch` does, as functions for a notebook."""

from __future__ import annotations

import hashlib
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.catalog import integrity
from orchestrator.cluster.signals import stopping
from orchestrator.cluster.supervisor import end_in_time, is_supervised
from orchestrator.errors import Interrupted, StorageError, masked
from orchestrator.execution.ray_environment import settled
from orchestrator.machine import commits, folders, paths
from orchestrator.monitor import events
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.monitor.sinks import Lines
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import stops
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LAUNCH, acquire, trial_resource
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, PlannedTrial, make_plan, with_stored_state
from orchestrator.study.reader import load_study
from orchestrator.study.stored_studies import Launched

if TYPE_CHECKING:
    from orchestrator.execution.attempt import Job

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
) -> Plan:
    """The plan of a study file beside what its storage holds. Raises StudyError; writes nothing.

    The file is not read where its `text` is given.
    """
    place = Storage.at(storage)
    plan = make_plan(load_study(study_file, settings, text, open_weights=True))
    if warning := stored_studies.other_file(place, plan):
        plan = replace(plan, warnings=(*plan.warnings, warning))
    trial_ids = [trial.trial_id for trial in plan.trials]  # a storage may hold many other studies
    return with_stored_state(plan, store.read_states(place, trial_ids), list(place.tables()))


def launch(
    study_file: str | Path,
    *,
    data: str | Path = DEFAULT_DATA,
    storage: str | Path = DEFAULT_STORAGE,
    address: str | None = None,
    inline: bool = False,
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
    `address` is as for `kdctl launch`; its own cluster has a `dashboard`. A file whose `text` is given is not read.
    """
    since = datetime.now(UTC)
    on_event = _in_turn(_telling_precision(on_event or Lines()))
    place = Storage.at(storage)
    plan, damaged = _look_for_damage(plan_study(study_file, storage, settings, text), place)
    to_do = _to_do(plan, skip_failed=skip_failed)
    launched = _launched(plan, to_do, since, settings, paths.local(data, "data folder"), inline=inline)
    on_event(began := _begin(plan, launched))
    for warning in (*plan.warnings, *damaged, *integrity.foreign(place)):
        on_event(Event(EventKind.NOTE, warning))
    try:
        if to_do:
            place.prepare()
            _train(plan, to_do, place, launched, began, on_event, max_concurrent, address, dashboard)
        else:  # its name is printed, and means this plan from now on
            stored_studies.remember(place, plan, launched)
    except Interrupted:
        with suppress(StorageError):
            on_event(_end(plan, _rows(plan, place), since))
        raise
    on_event(_end(plan, rows := _rows(plan, place), since))
    tried = {trial.trial_id for trial in to_do}
    trained = sum(row.trial_id in tried and row.state is State.FINISHED for row in rows)
    return LaunchResult(plan, tuple(rows), trained)


def _in_turn(on_event: EventListener) -> EventListener:
    """The same for several threads, one at a time."""
    turn = threading.Lock()

    def told(event: Event) -> None:
        with turn:
            on_event(event)

    return told


def _telling_precision(on_event: EventListener) -> EventListener:
    """The same, with a note once a trial begins under `precision: auto`: what that is here; once a choice."""
    found: set[str] = set()

    def told(event: Event) -> None:
        on_event(event)
        facts = event.facts
        if not isinstance(facts, events.TrialStarted) or not event.trial or event.trial.config.precision != "auto":
            return
        if facts.arithmetic and facts.arithmetic not in found:
            found.add(facts.arithmetic)
            on_event(Event(EventKind.NOTE, f"precision auto: convolutions in {facts.arithmetic} on {facts.device}"))

    return told


def _rows(plan: Plan, storage: Storage) -> list[TrialRecord]:
    return store.read_trials(storage, [trial.trial_id for trial in plan.trials])


def _begin(plan: Plan, launched: Launched) -> Event:
    members = stored_studies.members(plan)
    finished = sum(member.is_cached for member in members)
    text = f"study {plan.study}: {len(members):,} trials"
    if finished:
        text = f"{finished} of {len(members)} trials are finished in this storage and not trained again"
    return Event(
        EventKind.LAUNCH, text, facts=events.LaunchStarted(plan.study, launched.executor, members, launched.left)
    )


def _end(plan: Plan, rows: Sequence[TrialRecord], since: datetime) -> Event:
    counted = Counter(row.state for row in rows)
    states = {state: counted[state] for state in State if counted[state]}
    seconds = (datetime.now(UTC) - since).total_seconds()
    counts = ", ".join(f"{count:,} {state}" for state, count in states.items()) or "none begun"
    text = f"study {plan.study}: of {len(plan.trials):,} trials {counts}; this launch took {seconds:,.0f} s"
    return Event(EventKind.END, text, facts=events.LaunchTotals(states, seconds))


def _look_for_damage(plan: Plan, storage: Storage) -> tuple[Plan, list[str]]:
    """The plan once damaged teachers are removed, which are then to be trained again; and what was removed."""
    damaged = _drop_damaged_teachers(plan, storage)
    if not damaged:
        return plan, []
    states = store.read_states(storage, [trial.trial_id for trial in plan.trials])
    return with_stored_state(plan, states, list(storage.tables())), damaged


def _drop_damaged_teachers(plan: Plan, storage: Storage) -> list[str]:
    """Removes weights that are not those of their row, where a student to be trained needs them; says which."""
    needed = {trial.teacher_id for trial in plan.trials if trial.teacher_id and trial.state != "finished"}
    ready = [trial.trial_id for trial in plan.trials if trial.state == "finished" and trial.trial_id in needed]
    said = []
    for trial_id in ready:
        name = storage.weights(trial_id)
        if _is_as_in_row(trial_id, storage):
            continue
        lease = acquire(storage, trial_resource(trial_id))
        if lease is None:
            continue  # another launch trains it again already
        with lease:
            if not _is_as_in_row(trial_id, storage):
                storage.backend.delete(name)
        said.append(f"{storage.backend.describe(name)} is damaged: its SHA-256 is not that of its row; trained again")
    return said


def _is_as_in_row(trial_id: str, storage: Storage) -> bool:
    row = store.read_trial(storage, trial_id)
    try:
        found = hashlib.sha256(storage.backend.read(storage.weights(trial_id))).hexdigest()
    except FileNotFoundError:
        return False
    return row is not None and found == row.weights_sha256


def _to_do(plan: Plan, *, skip_failed: bool) -> list[PlannedTrial]:
    """What is not finished; without those that failed and those that wait for them, where they are to be left."""
    left = {trial.trial_id for trial in plan.trials if skip_failed and trial.state == "failed"}
    return [
        trial
        for trial in plan.trials
        if trial.state != "finished" and trial.trial_id not in left and trial.teacher_id not in left
    ]


def _train(
    plan: Plan,
    to_do: Sequence[PlannedTrial],
    storage: Storage,
    launched: Launched,
    began: Event,
    on_event: EventListener,
    max_concurrent: int | None,
    address: str | None,
    dashboard: bool,
) -> None:
    on_event(Event(EventKind.PREPARING, "loading PyTorch"))  # which takes seconds
    from orchestrator.data import tensors as datasets
    from orchestrator.execution.inline_executor import Workload, run_inline

    begun, stop = threading.Event(), threading.Event()
    lease = acquire(storage, launched.resource)
    assert lease, "nobody else knows its name"
    with lease, stopping(lambda name: _ask(begun, stop, on_event, name)), _hearing(storage, launched, stop):
        lease.sweep()
        stored_studies.remember(storage, plan, launched)
        for name in sorted({trial.config.dataset for trial in to_do}):
            if not datasets.is_prepared(name, storage):
                on_event(Event(EventKind.PREPARING, f"decoding {name}"))
            datasets.prepare(name, Path(launched.data), storage)
        ready = frozenset(trial.trial_id for trial in plan.trials if trial.state == "finished")
        jobs = _jobs(plan, to_do, storage, launched)
        run = Workload(
            jobs, ready, storage, plan.resources, lease, stop, max_concurrent, address, begun, dashboard, began
        )
        if launched.executor == "inline":
            run_inline(run, on_event)
        else:
            is_own = address in (None, "local")
            on_event(Event(EventKind.PREPARING, "starting Ray" if is_own else f"joining the Ray cluster at {address}"))
            folders.lend_home()  # Tune cannot be imported without one
            with settled():  # Ray reads some of its variables when it is imported, which takes seconds
                from orchestrator.execution.ray_executor import run_ray

            run_ray(run, on_event)


def _launched(
    plan: Plan, to_do: Sequence[PlannedTrial], since: datetime, settings: Sequence[str], data: Path, *, inline: bool
) -> Launched:
    """What others are to know of this launch. Secrets do not belong into a study file, but are masked all the same."""
    others = {trial.trial_id for trial in to_do} | {t.trial_id for t in plan.trials if t.state == "finished"}
    return Launched(
        resource=f"{LAUNCH}{secrets.token_hex(6)}",
        since=since,
        host=socket.gethostname(),
        executor="inline" if inline else "ray",
        file=masked(plan.source),
        text=masked(plan.text),
        settings=tuple(map(masked, settings)),
        data=str(data),
        left=tuple(trial.trial_id for trial in plan.trials if trial.trial_id not in others),
        path=stored_studies.path_of(plan.source),
        commit=commits.of_file(Path(plan.source)),
    )


@contextmanager
def _hearing(storage: Storage, launched: Launched, stop: threading.Event) -> Iterator[None]:
    """While this lasts, who sees the storage can ask the launch to stop, see `stops`."""
    ended = threading.Event()
    thread = stops.listen(storage, launched.resource, stop.set, ended)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        stops.clear(storage, launched.resource)


def _ask(begun: threading.Event, stop: threading.Event, on_event: EventListener, name: str) -> None:
    if not begun.is_set():  # nothing is trained yet, and what is being prepared is whole or not there
        raise Interrupted(f"{name}: stopped before anything was trained")
    stop.set()
    # Not in this thread: the signal may have come while it was telling something.
    text = f"{name}: stopping, what runs writes a checkpoint first; once more ends it at once"
    threading.Thread(target=on_event, args=(Event(EventKind.NOTE, text),), daemon=True).start()
    if is_supervised():
        end_in_time()


def _jobs(plan: Plan, to_do: Sequence[PlannedTrial], storage: Storage, launched: Launched) -> list[Job]:
    from orchestrator.execution.attempt import Job

    wanted = {trial.trial_id for trial in to_do}
    commit = commits.of_folder(Path(plan.source).absolute().parent)
    return [
        Job(
            trial=trial,
            no=no,
            study=plan.study,
            storage=storage.backend.address,
            threads=plan.resources.cpus_per_trial,
            weights=_absolute(plan.weights.get(trial.config.weights or "")),
            git_commit=commit,
            ray_version=None,
            launch=launched.resource,
            since=launched.since.isoformat(),
            checkpoint_seconds=plan.resources.checkpoint_seconds,
        )
        for no, trial in enumerate(plan.trials, 1)
        if trial.trial_id in wanted
    ]


def _absolute(path: str | None) -> str | None:
    return str(Path(path).absolute()) if path else None  # a worker runs in another folder
