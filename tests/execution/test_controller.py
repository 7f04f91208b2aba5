"""The controller with reports made by hand: retries, rows of failed trials, launches that share a storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from workloads import ON_CPU, Make, Reported, jobs_of, listen, student, take

from orchestrator.errors import DeviceLost, Interrupted, RayLost, StorageError
from orchestrator.execution import controller as module
from orchestrator.execution._resources import Shares
from orchestrator.execution.attempt import Report, TakenOver, TrialNotice
from orchestrator.execution.controller import TrialController, Workload
from orchestrator.execution.job import Job
from orchestrator.records import Failure, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease
from orchestrator.study.values import Resources


class Stage:
    """A controller without an executor."""

    def __init__(self, storage: Storage, lease: Lease, jobs: list[Job], resources: Resources = ON_CPU) -> None:
        self.work = Workload(jobs, frozenset(), storage, resources, lease)
        self.reported: Reported = []
        self.messages: list[str] = []
        self.controller = TrialController(
            self.work, jobs, listen(lambda *pair: self.reported.append(pair), self.messages.append), Shares([1000], 1)
        )

    def start(self) -> Job:
        """Starts the next trial; waits if it cannot start yet."""
        job = self.controller.start_or_wait()
        assert job
        return job

    @property
    def states(self) -> list[State]:
        """The states in which trials ended, as reported to the listener."""
        return [record.state for _, record in self.reported if isinstance(record, TrialRecord)]


@pytest.fixture
def stage(storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stage]]:
    """Makes a controller over trials that wait for nothing but each other."""
    for name in ("_POLL", "_LEASE_PERIOD", "_BACK_OFF"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    with take(storage, "launch-test") as lease:
        yield lambda *configs, **resources: Stage(
            storage, lease, jobs_of(storage, *configs), Resources(gpus_per_trial=0, **resources)
        )


def ended(job: Job, state: State, error: str | None = None, failure: Failure | None = None) -> TrialRecord:
    """The last report of a worker."""
    return replace(job.row(state, error, failure), end_time=datetime.now(UTC))


def finish(stage: Stage, storage: Storage, job: Job) -> TrialRecord:
    """Ends a trial as finished."""
    storage.backend.write(storage.weights(job.trial.trial_id), b"weights")
    row = replace(ended(job, State.FINISHED), weights_bytes=7, acc=1.0, last_acc=1.0)
    store.write_trial(storage, row)
    stage.controller.note(job, row)
    return row


@pytest.mark.parametrize("failure", sorted(set(Failure) - {Failure.DEVICE}))
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_only_failures_that_may_not_recur_are_retried(
    failure: Failure, retries: int, stage: Callable[..., Stage], make_config: Make
) -> None:
    played = stage(make_config(), retries=retries)
    attempts = []
    while not played.controller.is_over:
        job = played.start()
        attempts.append(job)
        played.controller.note(job, ended(job, State.FAILED, "the reason", failure))
    expected = 1 + (retries if failure in (Failure.LOST_WORKER, Failure.OUT_OF_MEMORY) else 0)
    assert len(attempts) == expected
    assert played.states == [State.FAILED], "only the last attempt is reported as the end"
    retried = [text for text in played.messages if "retried in" in text]
    assert [f"({number} of {retries})" in text and "the reason" in text for number, text in enumerate(retried, 1)] == [
        True
    ] * (expected - 1)


def test_a_device_that_this_process_lost_ends_the_launch(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, student(teacher, "st"), make_config(seed=1), retries=3)
    failed, other = played.start(), played.start()
    played.controller.note(failed, ended(failed, State.FAILED, "its GPU is gone", Failure.DEVICE))
    assert played.controller.is_stopping and played.controller.start() is None
    played.controller.note(other, ended(other, State.STOPPED))
    assert played.states == [State.FAILED, State.STOPPED], "the student is not skipped: its teacher will be trained"
    with pytest.raises(DeviceLost, match="its GPU is gone; launch again: a new process continues every trial"):
        played.controller.conclude()


def test_a_worker_that_lost_its_device_is_replaced(stage: Callable[..., Stage], make_config: Make) -> None:
    played = stage(make_config(), retries=2)
    played.controller._replaces_workers = True
    for _ in range(3):
        job = played.start()
        played.controller.note(job, ended(job, State.FAILED, "its GPU is gone", Failure.DEVICE))
    assert played.states == [State.FAILED] and not played.controller.is_stopping


def test_attempts_wait_longer_and_longer(
    stage: Callable[..., Stage], make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(module, "_BACK_OFF", 5.0)
    played = stage(make_config(seed=0), make_config(seed=1), retries=3)
    first, other = played.start(), played.start()
    for number in range(3):
        played.controller.note(first, ended(first, State.FAILED, "lost", Failure.LOST_WORKER))
        now += 5 * 2**number - 0.1
        assert played.controller.start() is None, "too early"
        now += 0.2
        first = played.start()
        assert first.trial.trial_id != other.trial.trial_id
    played.controller.note(first, ended(first, State.FAILED, "lost", Failure.LOST_WORKER))
    assert played.states == [State.FAILED]


def test_a_worker_that_died_gets_a_row_that_counts_the_attempts(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, student(teacher, "st"), retries=2)
    for _ in range(3):
        assert store.read_trials(storage) == []
        played.controller.note_loss(played.start(), Failure.LOST_WORKER, "the worker died")
    assert played.controller.is_over and played.states == [State.FAILED, State.SKIPPED]
    failed, skipped = sorted(store.read_trials(storage), key=lambda row: row.no)
    assert (failed.state, failed.failure) == (State.FAILED, Failure.LOST_WORKER)
    assert failed.error == "the worker died, 3 times; launch again to resume from its checkpoint"
    assert skipped.error == f"its teacher {failed.trial_id} failed: {failed.error}"
    assert failed.end_time and skipped.end_time
    played.controller.conclude()  # everything has ended, although it failed


def test_a_worker_that_died_while_stopping_is_no_failure(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    job = played.start()
    played.work.stop.set()
    assert not played.controller.is_over, "a trial still runs"
    played.controller.note_loss(job, Failure.LOST_WORKER, "the worker died")
    assert played.controller.is_over and store.read_trials(storage) == []
    with pytest.raises(Interrupted):
        played.controller.conclude()


def test_a_storage_that_fails_stops_the_launch(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, make_config(seed=1), student(teacher, "st"), make_config(seed=2))
    job, other = played.start(), played.start()
    played.controller.note(job, ended(job, State.FAILED, "no space left", Failure.STORAGE))
    assert played.controller.is_stopping and played.controller.start() is None
    assert not played.controller.is_over, "the other trial still runs"
    played.controller.note(other, ended(other, State.STOPPED, "stopped in epoch 1"))
    assert played.controller.is_over and played.controller.start_or_wait() is None
    assert played.states == [State.FAILED, State.STOPPED], "no dependant is skipped: the trial did nothing wrong"
    assert store.read_trials(storage) == []
    with pytest.raises(StorageError, match="no space left"):
        played.controller.conclude()


def test_the_first_reason_to_give_up_is_raised(stage: Callable[..., Stage], make_config: Make) -> None:
    played = stage(make_config())
    assert not played.controller.is_lost
    played.controller.give_up(RayLost("Ray died"))
    played.controller.give_up(StorageError("later"))
    assert played.controller.is_lost and played.controller.is_stopping
    with pytest.raises(RayLost, match="Ray died"):
        played.controller.conclude()


def test_a_trial_that_stopped_without_a_request_starts_again(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    job = played.start()
    played.controller.note(job, ended(job, State.STOPPED, "stopped in epoch 3"))
    assert played.reported == [] and not played.controller.is_over
    assert played.start().trial == job.trial
    finish(played, storage, job)
    assert played.states == [State.FINISHED] and played.controller.is_over


def test_late_reports_of_an_earlier_attempt_are_ignored(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    first = played.start()
    played.controller.note_loss(first, Failure.LOST_WORKER, "its worker was lost")
    late: list[Report] = [
        ended(first, State.FAILED, "late", Failure.ERROR), TakenOver(first.trial.trial_id), ended(first, State.STOPPED),
        ended(first, State.FINISHED),
    ]  # fmt: skip
    for report in late:
        played.controller.note(first, report)  # while the next attempt waits ...
    second = played.start()
    assert second != first and second.trial == first.trial
    for report in late:
        played.controller.note(first, report)  # ... and while it runs
    played.controller.note_loss(first, Failure.LOST_WORKER, "its worker was lost")
    assert played.reported == [] and not played.controller.is_over and played.controller.start() is None
    finish(played, storage, second)
    assert played.controller.is_over
    played.controller.conclude()


def test_a_notice_of_a_trial_becomes_an_event_of_that_trial(stage: Callable[..., Stage], make_config: Make) -> None:
    played = stage(make_config())
    job = played.start()
    played.controller.note(job, TrialNotice("resumes in epoch 2"))
    assert played.messages == [f"{job.trial.trial_id} {job.trial.title()}: resumes in epoch 2"]


def test_a_trial_held_elsewhere_is_checked_again_and_its_result_taken_over(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, student(teacher, "st"))
    job = played.start()
    with take(storage, f"trial-{job.trial.trial_id}"):
        played.controller.note(job, TakenOver(job.trial.trial_id))
        now = time.monotonic()
        while time.monotonic() < now + 0.1:
            assert played.controller.start() is None, "it is still held"
    assert [text for text in played.messages if "another launch trains it" in text] == played.messages[:1]
    assert len(played.messages) == 1, "reported once"
    assert played.start() == job
    finish(played, storage, job)
    assert played.start().trial.teacher_id == job.trial.trial_id


def test_a_skipped_row_does_not_replace_a_finished_one(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    pupils = [student(teacher, method) for method in ("st", "logit")]
    played = stage(teacher, *pupils)
    job = played.start()
    finished = finish(stage(pupils[0]), storage, jobs_of(storage, pupils[0])[0])  # by another launch
    played.controller.note(job, ended(job, State.FAILED, "bad", Failure.ERROR))
    rows = {row.trial_id: row for row in store.read_trials(storage)}
    assert rows[pupils[0].trial_id()] == finished
    assert rows[pupils[1].trial_id()].state is State.SKIPPED


def test_a_worker_that_reports_nothing_for_too_long_counts_as_lost(
    stage: Callable[..., Stage], storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    played = stage(make_config())
    job = played.start()

    def check_after(seconds: float) -> Job | None:
        nonlocal now
        now += seconds
        played.controller.end_silent_trials()
        return played.controller.start()

    assert check_after(1000) is None, "it has not started yet"
    with take(storage, f"trial-{job.trial.trial_id}"):
        assert check_after(1) is None and check_after(1000) is None, "its lease is held"
    assert check_after(59) is None, "it may still report"
    retried = check_after(2)
    assert retried and retried.trial == job.trial and "has reported nothing for 60 s" in played.messages[0]
    assert check_after(1000) is None, "the next attempt has not started yet"


def test_a_lease_of_an_earlier_attempt_does_not_make_this_attempt_silent(
    stage: Callable[..., Stage], storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    played = stage(make_config())
    job = played.start()
    with take(storage, f"trial-{job.trial.trial_id}"):
        played.controller.end_silent_trials()
        played.controller.note(job, TakenOver(job.trial.trial_id))
        now += 1000
    assert played.controller.start() == job
    played.controller.end_silent_trials()
    assert played.controller.start() is None and len(played.messages) == 1


def test_leases_are_checked_rarely(
    stage: Callable[..., Stage], make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, checks = 1000.0, 0

    def find_holders(prefix: str) -> dict[str, object]:
        nonlocal checks
        checks += 1
        return {}

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(module, "_LEASE_PERIOD", 5.0)
    played = stage(make_config())
    monkeypatch.setattr(played.work.lease, "find_holders", find_holders)
    for _ in range(100):
        now += 0.5
        played.controller.end_silent_trials()
    assert checks == 10


def test_a_stop_after_the_last_trial_is_no_interruption(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    with pytest.raises(Interrupted):
        played.controller.conclude()
    finish(played, storage, played.start())
    played.work.stop.set()
    played.controller.conclude()


def test_another_trial_starts_when_one_ends(storage: Storage, make_config: Make) -> None:
    jobs = jobs_of(storage, *(make_config(seed=seed) for seed in range(2)))
    with take(storage, "launch-test") as lease:
        work = Workload(jobs, frozenset(), storage, ON_CPU, lease)
        controller = TrialController(work, jobs, listen(lambda *pair: None), Shares([1], None))
        first = controller.start()
        assert first and controller.start() is None
        controller.note(first, first.row(State.FAILED, "a bug", Failure.ERROR))
        second = controller.start()
        assert second and second.trial == jobs[1].trial


def test_a_trial_counts_as_live_whatever_its_share(storage: Storage, make_config: Make) -> None:
    jobs = jobs_of(storage, make_config())
    with take(storage, "launch-test") as lease:
        work = Workload(jobs, frozenset(), storage, ON_CPU, lease)
        controller = TrialController(work, jobs, listen(lambda *pair: None), Shares([4], None))
        started = controller.start()
        assert started and started.threads == 4 and controller.is_live(started)
        assert not controller.is_live(replace(started, since="2026-01-01T00:00:00+00:00"))  # an earlier attempt
