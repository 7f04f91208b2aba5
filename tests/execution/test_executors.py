"""The contract of every executor: each test runs over the whole table, so a new entry is checked without a new test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from workloads import ON_CPU, Make, jobs_of, student, take

from orchestrator.errors import Interrupted, KdctlError
from orchestrator.execution import controller
from orchestrator.execution.controller import Workload
from orchestrator.execution.ray._environment import ray_environment
from orchestrator.executors import DEFAULT, EXECUTORS, arguments, describe_where, get
from orchestrator.monitor.events import Event, EventKind, TrialStarted
from orchestrator.records import EpochRecord, State, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage import leases
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import trial_resource

pytestmark = pytest.mark.timeout(290)

LAUNCH = "launch-test"
React = Callable[[Event, Workload], None]


@dataclass
class Run:
    """The events of an executor, and whether it was stopped before the end."""

    events: list[Event] = field(default_factory=list)
    is_interrupted: bool = False

    def of(self, config: TrialConfig) -> list[Event]:
        """The events of one trial."""
        return [event for event in self.events if event.trial and event.trial.trial_id == config.trial_id()]

    def index(self, config: TrialConfig, kind: EventKind) -> int:
        """The index of a trial's first event of a kind among all events."""
        return next(n for n, event in enumerate(self.events) if event in self.of(config) and event.kind is kind)


def one_cluster() -> AbstractContextManager[object]:
    """One Ray cluster for all tests of this file: an executor uses the cluster that its process is part of already."""
    from orchestrator.execution.ray._session import join_cluster

    return join_cluster("local", "tiny", print, dashboard=False)


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of each executor, with everything running that it needs."""
    needs_ray = request.param == "ray"
    with patch.dict(os.environ), ray_environment(), one_cluster() if needs_ray else nullcontext():
        yield request.param


def run(
    executor: str, storage: Storage, *configs: TrialConfig, react: React = lambda event, work: None, **options: Any
) -> Run:
    """Lets an executor train; `react` gets every event."""
    done = Run()
    with take(storage, LAUNCH) as lease:
        jobs = [replace(job, launch=LAUNCH, checkpoint_seconds=0) for job in jobs_of(storage, *configs)]
        work = Workload(jobs, frozenset(), storage, ON_CPU, lease, **options)

        def on_event(event: Event) -> None:
            done.events.append(event)
            react(event, work)

        try:
            get(executor).load()(work, on_event)
        except Interrupted:
            done.is_interrupted = True
        assert work.started.is_set()
    assert leases.list_holders(storage) == {}, "a lease is left"
    return done


def copy(digits: Storage, folder: Path) -> Storage:
    """A storage that holds digits."""
    storage = Storage.at(folder)
    storage.prepare()
    shutil.copytree(Path(digits.backend.address, "datasets"), folder / "datasets")
    return storage


def small(make_config: Make, **overrides: object) -> TrialConfig:
    """A trial with two steps per epoch."""
    return make_config(limit_train=64, limit_test=50, **overrides)


@dataclass
class Study:
    """A study after its launch: a teacher that finishes, a teacher that diverges, and their students."""

    storage: Storage
    teacher: TrialConfig
    students: list[TrialConfig]
    wild: TrialConfig
    pupil: TrialConfig
    plain: TrialConfig
    run: Run

    @property
    def trials(self) -> list[TrialConfig]:
        """Every trial in the order of the plan, with students deliberately before their teacher."""
        return [*self.students, self.teacher, self.wild, self.pupil, self.plain]

    @property
    def rows(self) -> dict[str, TrialRecord]:
        """The row of every trial."""
        return {row.trial_id: row for row in store.read_trials(self.storage)}


def make_study(storage: Storage, make_config: Make) -> Study:
    """The same study for every executor."""
    teacher, wild = small(make_config, seed=1, epochs=2), small(make_config, lr=1e6, epochs=5)
    students = [student(teacher, method) for method in ("st", "logit")]
    return Study(storage, teacher, students, wild, student(wild, "st"), small(make_config, seed=3), Run())


@pytest.fixture(scope="module")
def study(executor: str, digits_storage: Storage, make_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study, trained once for all tests that only look at it."""
    made = make_study(copy(digits_storage, tmp_path_factory.mktemp(executor)), make_config)
    made.run = run(executor, made.storage, *made.trials)
    return made


def test_every_trial_becomes_a_row_with_its_weights(study: Study) -> None:
    assert set(study.rows) == {config.trial_id() for config in study.trials}
    assert [study.rows[config.trial_id()].no for config in study.trials] == list(range(1, 7))
    for config in (*study.students, study.teacher, study.plain):
        row = study.rows[config.trial_id()]
        assert row.state is State.FINISHED and row.error is None and row.resumed == 0
        assert study.storage.backend.stat(study.storage.weights(row.trial_id))
    assert not study.run.is_interrupted


def test_a_teacher_is_finished_before_its_students_start(study: Study) -> None:
    ended = study.run.index(study.teacher, EventKind.ENDED)
    for config in study.students:
        assert ended < study.run.index(config, EventKind.STARTED)
        assert study.rows[config.trial_id()].teacher_acc == study.rows[study.teacher.trial_id()].last_acc


def test_a_failure_is_a_row_and_its_students_are_skipped(study: Study) -> None:
    failed, skipped = (study.rows[config.trial_id()] for config in (study.wild, study.pupil))
    assert (failed.state, skipped.state) == (State.FAILED, State.SKIPPED)
    assert failed.error and "try a smaller lr than 1e+06" in failed.error
    assert skipped.error == f"its teacher {failed.trial_id} failed: {failed.error}"
    assert failed.end_time and skipped.end_time
    assert [event.kind for event in study.run.of(study.pupil)] == [EventKind.ENDED]


def test_the_events_of_a_trial_come_in_order(study: Study) -> None:
    kinds = [event.kind for event in study.run.events]
    assert EventKind.PREPARING in kinds[: kinds.index(EventKind.STARTED)]
    for config in (*study.students, study.teacher, study.plain):
        started, *epochs, ended = [event.facts for event in study.run.of(config)]
        assert isinstance(started, TrialStarted) and started.epoch == 1
        assert [record.epoch for record in epochs if isinstance(record, EpochRecord)] == [*range(1, config.epochs + 1)]
        assert ended == study.rows[config.trial_id()], "the last event holds the row"
    assert [event.facts for event in study.run.of(study.pupil)] == [study.rows[study.pupil.trial_id()]]


def test_processes_take_one_trial_after_another(study: Study) -> None:
    started = [event.facts for event in study.run.events if isinstance(event.facts, TrialStarted)]
    assert len(started) == 5 and len({facts.pid for facts in started}) < 5


# Columns that depend on a clock or on the executor; all others must be exactly equal.
MAY_DIFFER = {"seconds", "images_per_second", "start_time", "end_time", "ray_version"}


@pytest.fixture(scope="module")
def reference(digits_storage: Storage, make_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same study trained in this process."""
    made = make_study(copy(digits_storage, tmp_path_factory.mktemp("reference")), make_config)
    run("inline", made.storage, *made.trials)
    return made


def numbers(study: Study) -> list[str]:
    """Every row of both tables, as text so that a NaN equals itself, and the weights."""
    rows = [asdict(row) for row in study.rows.values()] + store.read_epochs(study.storage)
    texts = [repr({name: value for name, value in row.items() if name not in MAY_DIFFER}) for row in rows]
    return sorted(text.replace(study.storage.backend.address, "") for text in texts)


def test_every_executor_gives_the_same_numbers_and_weights(study: Study, reference: Study) -> None:
    assert numbers(study) == numbers(reference)
    for config in (study.teacher, *study.students, study.plain):
        name = study.storage.weights(config.trial_id())
        assert study.storage.backend.read(name) == reference.storage.backend.read(name)


# A second launch with the same storage, in which another launch trains one of its trials.


@dataclass
class Second:
    """A second launch: it holds finished trials, one that another launch finishes meanwhile, and new ones."""

    finished: list[TrialConfig]
    theirs: TrialConfig
    new: list[TrialConfig]
    before: dict[str, TrialRecord]
    run: Run


@pytest.fixture(scope="module")
def second(executor: str, study: Study, make_config: Make) -> Iterator[Second]:
    """A second launch of one trial at a time, for all tests that only look at it."""
    storage, theirs = study.storage, small(make_config, seed=4)
    lease = take(storage, trial_resource(theirs.trial_id()))
    (job,) = jobs_of(storage, theirs)

    def finish(event: Event, work: Workload) -> None:
        if event.kind is EventKind.ELSEWHERE:  # the other launch finishes now
            storage.backend.write(storage.weights(theirs.trial_id()), b"weights")
            store.write_trial(storage, replace(job.row(State.FINISHED), weights_bytes=7, acc=1.0, last_acc=1.0))
            lease.release()

    finished, new = [study.teacher, *study.students], [small(make_config, seed=seed, epochs=2) for seed in (5, 6, 7)]
    before = study.rows
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(controller, "_PAUSE", 0.01)
        done = run(executor, storage, theirs, *finished, *new, react=finish, max_concurrent=1)
    yield Second(finished, theirs, new, before, done)


def test_what_is_finished_is_not_trained_again(study: Study, second: Second) -> None:
    for config in second.finished:
        assert [event.kind for event in second.run.of(config)] == [EventKind.ENDED]
        assert study.rows[config.trial_id()] == second.before[config.trial_id()]


def test_a_trial_of_another_launch_is_taken_over_when_it_ends(study: Study, second: Second) -> None:
    kinds = [event.kind for event in second.run.of(second.theirs)]
    assert kinds == [EventKind.ELSEWHERE, EventKind.ENDED], "nothing was trained"
    assert second.run.of(second.theirs)[-1].facts == study.rows[second.theirs.trial_id()]
    assert not second.run.is_interrupted


def test_no_more_trials_run_than_max_concurrent(second: Second) -> None:
    new = {config.trial_id() for config in second.new}
    trials = [event.trial.trial_id for event in second.run.events if event.trial and event.trial.trial_id in new]
    assert len(trials) == 3 * 4, "each trial starts, trains two epochs and ends"
    assert sum(before != after for before, after in pairwise(trials)) == 2, "the events of two trials alternate"


def test_a_lost_lease_and_a_stop_cost_no_epoch(
    executor: str, storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "_PAUSE", 0.01)
    config, later = small(make_config, epochs=3000), small(make_config, seed=1)
    attempts: list[int] = []

    def lose_then_stop(event: Event, work: Workload) -> None:
        if event.kind is EventKind.STARTED:
            attempts.append(len(attempts))
        if event.kind is EventKind.EPOCH and len(attempts) == 1:
            work.lease.evict(trial_resource(config.trial_id()))
        elif event.kind is EventKind.EPOCH:
            work.stop.set()

    stopped = run(executor, storage, config, react=lose_then_stop)
    assert stopped.is_interrupted
    (row,) = store.read_trials(storage)
    assert row.state is State.STOPPED and row.error and "the same command resumes it from there" in row.error
    assert storage.backend.list_files(storage.checkpoints(config.trial_id()))
    kinds = [event.kind for event in stopped.of(config) if event.kind not in (EventKind.EPOCH, EventKind.NOTICE)]
    assert kinds == [EventKind.STARTED, EventKind.ELSEWHERE, EventKind.STARTED, EventKind.ENDED]

    again = run(executor, storage, config, later, react=lose_then_stop, max_concurrent=1)
    assert not again.of(later), "nothing starts after a stop"
    first, second, third = (
        event.facts.epoch for event in (*stopped.events, *again.events) if isinstance(event.facts, TrialStarted)
    )
    epochs = [event.facts.epoch for event in stopped.events if isinstance(event.facts, EpochRecord)]
    assert first == 1 < second < third and third > max(epochs), "no epoch is trained twice after a stop"
    assert store.read_trials(storage)[0].resumed == 2


# The table.


def test_a_command_line_names_what_is_not_the_default() -> None:
    assert arguments(DEFAULT) == [] and arguments("inline") == ["--inline"]
    assert arguments("of another version") == ["--executor", "of another version"]
    assert [describe_where(name) for name in ("ray", "inline", "x")] == ["on Ray", "in one process", "x"]


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(KdctlError, match="unknown executor 'rai'; expected ray or inline; did you mean ray"):
        get("rai")


def test_an_executor_gets_the_options_that_it_takes() -> None:
    given = {"address": "auto", "dashboard": False}
    assert EXECUTORS["ray"].select_options(given) == given and EXECUTORS["inline"].select_options(given) == {}
