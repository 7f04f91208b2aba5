"""The executor in this process, and what every executor shares: rows for what failed, resources that can be given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data import tensors
from orchestrator.errors import Interrupted, RayLost, ResourceError, StorageError
from orchestrator.execution import inline_executor
from orchestrator.execution.attempt import Job, Report, TakenOver, TrialNotice
from orchestrator.execution.inline_executor import TrialController, Workload, described, gpus_of, run_inline
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.records import EpochRecord, Failure, State, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.reader import Resources

ON_CPU = Resources(gpus_per_trial=0)
OPTIONS = {"logit": (("ce_weight", 1.0), ("match", "logits")), "st": (("temperature", 4.0),)}
Make = Callable[..., TrialConfig]
Seen = list[tuple[str, EpochRecord | TrialRecord]]


def student(teacher: TrialConfig, method: str) -> TrialConfig:
    """A sane student of a teacher, which may not be sane."""
    return replace(teacher, method=method, options=OPTIONS[method], lr=0.05, teacher=teacher, teacher_cache="live")


def jobs_of(storage: Storage, *configs: TrialConfig) -> list[Job]:
    """Jobs as a launch makes them."""
    jobs = []
    for no, config in enumerate(configs, 1):
        teacher_id = config.teacher.trial_id() if config.teacher else None
        trial = PlannedTrial(config.trial_id(), "student", config, teacher_id, "new", config.teacher_cache, None)
        jobs.append(Job(trial, no, "tiny", storage.backend.address, 1, None, None, None))
    return jobs


def taken(storage: Storage, resource: str) -> Lease:
    """A lease that nobody holds yet."""
    lease = acquire(storage, resource)
    assert lease
    return lease


def telling(
    watch: Callable[[str, EpochRecord | TrialRecord], None], say: Callable[[str], None] = print
) -> EventListener:
    """Passes records on to one, and what is said to the other; where a trial started is neither."""

    def on_event(event: Event) -> None:
        if isinstance(event.facts, EpochRecord | TrialRecord):
            assert event.trial
            watch(event.trial.trial_id, event.facts)
        elif event.kind is not EventKind.STARTED:
            say(f"{event.trial.trial_id} {event.trial.title()}: {event.text}" if event.trial else event.text)

    return on_event


def run(storage: Storage, *configs: TrialConfig, ready: frozenset[str] = frozenset()) -> Seen:
    """Runs trials in this process; returns what the watcher was told."""
    seen: Seen = []
    with taken(storage, "launch-test") as lease:
        jobs = jobs_of(storage, *configs)
        order = Workload(jobs, ready, storage, ON_CPU, lease)
        run_inline(order, telling(lambda *told: seen.append(told)))
    return seen


def small(make_config: Make, **overrides: object) -> TrialConfig:
    """A trial of two steps an epoch."""
    return make_config(limit_train=64, limit_test=50, **overrides)


def test_a_tiny_study_becomes_rows(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config, seed=1)
    configs = [student(teacher, "st"), teacher, small(make_config), student(teacher, "logit")]
    seen = run(storage, *configs)
    rows = {row.trial_id: row for row in store.read_trials(storage)}
    assert {config.trial_id() for config in configs} == set(rows)
    assert all(row.state is State.FINISHED and row.error is None for row in rows.values())
    assert all(storage.backend.stat(storage.weights(trial_id)) for trial_id in rows)
    assert [rows[config.trial_id()].no for config in configs] == [1, 2, 3, 4]
    assert rows[configs[0].trial_id()].teacher_acc == rows[teacher.trial_id()].last_acc
    # Each trial: an epoch, then its end; nobody waits longer than for a teacher.
    order = [configs[1], configs[0], configs[2], configs[3]]
    assert [trial_id for trial_id, _ in seen] == [config.trial_id() for config in order for _ in range(2)]
    assert [type(record) for _, record in seen] == [EpochRecord, TrialRecord] * 4
    assert [row["trial_id"] for row in store.read_epochs(storage)] == sorted(rows)


def test_a_failed_teacher_skips_its_students_alone(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config, lr=1e6, epochs=5)
    pupil = student(teacher, "logit")
    pupils_pupil = student(pupil, "st")  # no study file asks for such a chain, but a row must not be missing
    seen = run(storage, teacher, pupil, pupils_pupil, small(make_config))
    ended = {trial_id: record for trial_id, record in seen if isinstance(record, TrialRecord)}
    states = [ended[config.trial_id()].state for config in (teacher, pupil, pupils_pupil, small(make_config))]
    assert states == [State.FAILED, State.SKIPPED, State.SKIPPED, State.FINISHED]
    failed, skipped, last, _ = (ended[trial.trial_id()] for trial in (teacher, pupil, pupils_pupil, small(make_config)))
    assert failed.error and "try a smaller lr than 1e+06" in failed.error
    assert skipped.error == f"its teacher {teacher.trial_id()} failed: {failed.error}"
    assert last.error == f"its teacher {pupil.trial_id()} skipped: {skipped.error}"
    assert {row.trial_id: row for row in store.read_trials(storage)} == ended


def test_a_student_of_a_finished_teacher_starts_at_once(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config)
    run(storage, teacher)
    seen = run(storage, student(teacher, "logit"), ready=frozenset([teacher.trial_id()]))
    assert isinstance(seen[-1][1], TrialRecord) and seen[-1][1].state is State.FINISHED


def test_a_stop_is_not_a_failed_trial(storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(job: Job, stopping: Callable[[], bool]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.execution.inline_executor.run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(storage, small(make_config))
    assert store.read_trials(storage) == []


def test_a_stop_ends_what_runs_and_starts_nothing_more(storage: Storage, make_config: Make) -> None:
    configs = [small(make_config, seed=seed, epochs=3) for seed in range(3)]
    seen: Seen = []

    def watch(*told: Any) -> None:
        seen.append(told)
        if len(seen) == 6:  # the second epoch of the second trial
            order.stop.set()

    with taken(storage, "launch-test") as lease:
        order = Workload(jobs_of(storage, *configs), frozenset(), storage, ON_CPU, lease)
        with pytest.raises(Interrupted, match="the same command goes on from there"):
            run_inline(order, telling(watch))
    states = store.read_states(storage)
    assert [states.get(config.trial_id()) for config in configs] == [State.FINISHED, State.STOPPED, None]
    again = run(storage, *configs)
    assert [type(record) for _, record in again] == [TrialRecord] + [EpochRecord, TrialRecord] + [EpochRecord] * 3 + [
        TrialRecord
    ]
    assert set(store.read_states(storage).values()) == {State.FINISHED}


# Side by side, as where trials share a GPU.


def timeless(row: TrialRecord) -> TrialRecord:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    return replace(row, seconds=0.0, images_per_second=0.0, start_time=then, end_time=then)


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets so many trials run at a time on the CPU too."""
    return lambda count: monkeypatch.setattr(inline_executor, "sharing", lambda gpus: count)


def test_trials_side_by_side_give_what_they_give_alone(
    storage: Storage,
    make_config: Make,
    tmp_path: Path,
    digits_storage: Storage,
    side_by_side: Callable[[int], None],
) -> None:
    teacher = small(make_config, seed=1, epochs=2)
    pupils = [replace(student(teacher, method), seed=seed) for method in ("st", "logit") for seed in (0, 1)]
    configs = [teacher, *pupils, small(make_config, lr=0.2, weight_decay=0.0, epochs=3)]
    run(storage, *configs)
    together = Storage.at(tmp_path / "together")
    together.prepare()
    tensors.prepare("digits", None, together)
    side_by_side(3)
    seen = run(together, *configs)
    kinds = [type(record) for _, record in seen]
    assert kinds != sorted(kinds, key=str), "no trial began before another had ended"
    first, second = (store.read_trials(each) for each in (storage, together))
    assert list(map(timeless, second)) == list(map(timeless, first))
    for config in configs:
        name = storage.weights(config.trial_id())
        assert storage.backend.read(name) == together.backend.read(name)


def test_no_more_run_side_by_side_than_shall(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[int] = []
    train, live = inline_executor.run_trial, set()

    def watched(job: Job, stopping: Callable[[], bool]) -> Iterator[Report]:
        live.add(job.trial.trial_id)
        for report in train(job, stopping):
            lives.append(len(live))
            if isinstance(report, TrialRecord):
                live.discard(job.trial.trial_id)
            yield report

    monkeypatch.setattr(inline_executor, "run_trial", watched)
    side_by_side(2)
    run(storage, *(small(make_config, seed=seed, epochs=2) for seed in range(5)))
    assert max(lives) == 2
    assert len(store.read_trials(storage)) == 5


def test_a_stop_ends_all_that_run_side_by_side(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None]
) -> None:
    side_by_side(2)
    configs = [small(make_config, seed=seed, epochs=200) for seed in range(3)]
    with taken(storage, "launch-test") as lease:
        order = Workload(jobs_of(storage, *configs), frozenset(), storage, ON_CPU, lease)
        with pytest.raises(Interrupted):
            run_inline(order, telling(lambda *told: order.stop.set()))
    states = store.read_states(storage)
    assert [states.get(config.trial_id()) for config in configs] == [State.STOPPED, State.STOPPED, None]


def test_what_ends_one_thread_ends_the_launch(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job, stopping: Callable[[], bool]) -> Iterator[Report]:
        raise SystemError("a bug")
        yield

    monkeypatch.setattr(inline_executor, "run_trial", broken)
    side_by_side(2)
    with pytest.raises(SystemError, match="a bug"):
        run(storage, small(make_config), small(make_config, seed=1))


def test_an_error_lets_the_others_write_their_checkpoints(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None]
) -> None:
    side_by_side(2)
    configs = [small(make_config, seed=seed, epochs=200) for seed in range(2)]

    def watch(*told: Any) -> None:
        raise StorageError("the disk is full")

    with taken(storage, "launch-test") as lease, pytest.raises(StorageError, match="the disk is full"):
        run_inline(Workload(jobs_of(storage, *configs), frozenset(), storage, ON_CPU, lease), telling(watch))
    assert set(store.read_states(storage).values()) == {State.STOPPED}
    assert not [thread for thread in threading.enumerate() if "_train" in thread.name]


# The conductor, told by hand what its trials say.


class Stage:
    """A conductor without an executor."""

    def __init__(self, storage: Storage, lease: Lease, jobs: list[Job], resources: Resources = ON_CPU) -> None:
        self.run = Workload(jobs, frozenset(), storage, resources, lease)
        self.seen: Seen = []
        self.said: list[str] = []
        self.conductor = TrialController(
            self.run, jobs, telling(lambda *told: self.seen.append(told), self.said.append)
        )

    def start(self) -> Job:
        """The next trial, which may wait for its time."""
        job = self.conductor.start_or_wait()
        assert job
        return job

    @property
    def states(self) -> list[State]:
        """How trials ended, as the watcher was told."""
        return [record.state for _, record in self.seen if isinstance(record, TrialRecord)]


@pytest.fixture
def stage(storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stage]]:
    """Makes a conductor over trials that wait for nothing but each other."""
    for name in ("_POLL", "_LOOK", "_BACK_OFF"):
        monkeypatch.setattr(inline_executor, name, 0.0)
    monkeypatch.setattr(inline_executor, "_PAUSE", 0.01)
    with taken(storage, "launch-test") as lease:
        yield lambda *configs, **resources: Stage(
            storage, lease, jobs_of(storage, *configs), Resources(gpus_per_trial=0, **resources)
        )


def ended(job: Job, state: State, error: str | None = None, failure: Failure | None = None) -> TrialRecord:
    """What a worker says at the end."""
    return replace(job.row(state, error, failure), end_time=datetime.now(UTC))


def finish(stage: Stage, storage: Storage, job: Job) -> TrialRecord:
    """Ends a trial well."""
    storage.backend.write(storage.weights(job.trial.trial_id), b"weights")
    row = replace(ended(job, State.FINISHED), weights_bytes=7, acc=1.0, last_acc=1.0)
    store.write_trial(storage, row)
    stage.conductor.note(job, row)
    return row


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_only_what_may_end_better_is_tried_again(
    failure: Failure, retries: int, stage: Callable[..., Stage], make_config: Make
) -> None:
    played = stage(make_config(), retries=retries)
    attempts = []
    while not played.conductor.is_over:
        job = played.start()
        attempts.append(job)
        played.conductor.note(job, ended(job, State.FAILED, "the reason", failure))
    expected = 1 + (retries if failure in (Failure.LOST_WORKER, Failure.OUT_OF_MEMORY) else 0)
    assert len(attempts) == expected
    assert played.states == [State.FAILED], "only the last attempt is news"
    tried = [text for text in played.said if "tried again in" in text]
    assert [f"({number} of {retries})" in text and "the reason" in text for number, text in enumerate(tried, 1)] == [
        True
    ] * (expected - 1)


def test_attempts_wait_longer_and_longer(
    stage: Callable[..., Stage], make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(inline_executor, "_BACK_OFF", 5.0)
    played = stage(make_config(seed=0), make_config(seed=1), retries=3)
    first, other = played.start(), played.start()
    for number in range(3):
        played.conductor.note(first, ended(first, State.FAILED, "lost", Failure.LOST_WORKER))
        now += 5 * 2**number - 0.1
        assert played.conductor.start() is None, "too early"
        now += 0.2
        first = played.start()
        assert first.trial.trial_id != other.trial.trial_id
    played.conductor.note(first, ended(first, State.FAILED, "lost", Failure.LOST_WORKER))
    assert played.states == [State.FAILED]


def test_a_worker_that_died_gets_a_row_that_counts_the_attempts(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, student(teacher, "st"), retries=2)
    for _ in range(3):
        assert store.read_trials(storage) == []
        played.conductor.lost(played.start(), Failure.LOST_WORKER, "the worker died")
    assert played.conductor.is_over and played.states == [State.FAILED, State.SKIPPED]
    failed, skipped = sorted(store.read_trials(storage), key=lambda row: row.no)
    assert (failed.state, failed.failure) == (State.FAILED, Failure.LOST_WORKER)
    assert failed.error == "the worker died, 3 times; launch again to go on from its checkpoint"
    assert skipped.error == f"its teacher {failed.trial_id} failed: {failed.error}"
    assert failed.end_time and skipped.end_time
    played.conductor.conclude()  # everything has ended, though badly


def test_a_worker_that_died_while_stopping_is_no_failure(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    job = played.start()
    played.run.stop.set()
    assert not played.conductor.is_over, "what runs is waited for"
    played.conductor.lost(job, Failure.LOST_WORKER, "the worker died")
    assert played.conductor.is_over and store.read_trials(storage) == []
    with pytest.raises(Interrupted):
        played.conductor.conclude()


def test_a_storage_that_fails_stops_the_launch(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, make_config(seed=1), student(teacher, "st"), make_config(seed=2))
    job, other = played.start(), played.start()
    played.conductor.note(job, ended(job, State.FAILED, "no space left", Failure.STORAGE))
    assert played.conductor.is_stopping and played.conductor.start() is None
    assert not played.conductor.is_over, "the other one is waited for"
    played.conductor.note(other, ended(other, State.STOPPED, "stopped in epoch 1"))
    assert played.conductor.is_over and played.conductor.start_or_wait() is None
    assert played.states == [State.FAILED, State.STOPPED], "no dependant is skipped: the trial did nothing wrong"
    assert store.read_trials(storage) == []
    with pytest.raises(StorageError, match="no space left"):
        played.conductor.conclude()


def test_the_first_reason_to_give_up_is_told(stage: Callable[..., Stage], make_config: Make) -> None:
    played = stage(make_config())
    assert not played.conductor.is_lost
    played.conductor.give_up(RayLost("Ray died"))
    played.conductor.give_up(StorageError("later"))
    assert played.conductor.is_lost and played.conductor.is_stopping
    with pytest.raises(RayLost, match="Ray died"):
        played.conductor.conclude()


def test_a_trial_that_stopped_though_nobody_asked_starts_again(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    job = played.start()
    played.conductor.note(job, ended(job, State.STOPPED, "stopped in epoch 3"))
    assert played.seen == [] and not played.conductor.is_over
    assert played.start().trial == job.trial
    finish(played, storage, job)
    assert played.states == [State.FINISHED] and played.conductor.is_over


def test_late_words_of_an_earlier_attempt_are_no_news(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    first = played.start()
    played.conductor.lost(first, Failure.LOST_WORKER, "its worker was lost")
    late: list[Report] = [
        ended(first, State.FAILED, "late", Failure.ERROR), TakenOver(first.trial.trial_id), ended(first, State.STOPPED),
        ended(first, State.FINISHED),
    ]  # fmt: skip
    for report in late:
        played.conductor.note(first, report)  # while the next attempt waits ...
    second = played.start()
    assert second != first and second.trial == first.trial
    for report in late:
        played.conductor.note(first, report)  # ... and while it runs
    played.conductor.lost(first, Failure.LOST_WORKER, "its worker was lost")
    assert played.seen == [] and not played.conductor.is_over and played.conductor.start() is None
    finish(played, storage, second)
    assert played.conductor.is_over
    played.conductor.conclude()


def test_what_a_trial_says_is_said_with_its_name(stage: Callable[..., Stage], make_config: Make) -> None:
    played = stage(make_config())
    job = played.start()
    played.conductor.note(job, TrialNotice("goes on in epoch 2"))
    assert played.said == [f"{job.trial.trial_id} {job.trial.title()}: goes on in epoch 2"]


def test_a_trial_held_elsewhere_is_asked_about_again_and_its_result_taken_over(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    played = stage(teacher, student(teacher, "st"))
    job = played.start()
    with taken(storage, f"trial-{job.trial.trial_id}"):
        played.conductor.note(job, TakenOver(job.trial.trial_id))
        now = time.monotonic()
        while time.monotonic() < now + 0.1:
            assert played.conductor.start() is None, "it is still held"
    assert [text for text in played.said if "another launch trains it" in text] == played.said[:1]
    assert len(played.said) == 1, "said once"
    assert played.start() == job
    finish(played, storage, job)
    assert played.start().trial.teacher_id == job.trial.trial_id


def test_an_inline_run_takes_over_what_another_launch_trained(
    storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_executor, "_PAUSE", 0.01)
    config, other = small(make_config), small(make_config, seed=1)
    lease = taken(storage, f"trial-{config.trial_id()}")
    (row,) = (record for _, record in run(storage, other) if isinstance(record, TrialRecord))
    (job,) = jobs_of(storage, config)

    def say(text: str) -> None:
        if "another launch trains it" in text:  # which ends just now
            storage.backend.write(storage.weights(config.trial_id()), b"weights")
            store.write_trial(storage, replace(job.row(State.FINISHED), weights_bytes=7, acc=1.0, last_acc=1.0))
            lease.release()

    seen: Seen = []
    with taken(storage, "launch-test") as mine:
        run_inline(
            Workload(jobs_of(storage, config, other), frozenset(), storage, ON_CPU, mine),
            telling(lambda *told: seen.append(told), say),
        )
    assert [type(record) for _, record in seen] == [TrialRecord, TrialRecord], "nothing was trained"
    assert {trial_id for trial_id, _ in seen} == {config.trial_id(), other.trial_id()}
    assert row in [record for _, record in seen]


def test_a_skipped_row_does_not_take_the_place_of_a_finished_one(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    teacher = make_config(seed=7)
    pupils = [student(teacher, method) for method in ("st", "logit")]
    played = stage(teacher, *pupils)
    job = played.start()
    lucky = finish(stage(pupils[0]), storage, jobs_of(storage, pupils[0])[0])  # another launch had more luck
    played.conductor.note(job, ended(job, State.FAILED, "bad", Failure.ERROR))
    rows = {row.trial_id: row for row in store.read_trials(storage)}
    assert rows[pupils[0].trial_id()] == lucky
    assert rows[pupils[1].trial_id()].state is State.SKIPPED


def test_a_worker_that_is_silent_too_long_is_taken_for_lost(
    stage: Callable[..., Stage], storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    played = stage(make_config())
    job = played.start()

    def look(seconds: float) -> Job | None:
        nonlocal now
        now += seconds
        played.conductor.look_after_silent()
        return played.conductor.start()

    assert look(1000) is None, "it has not begun yet"
    with taken(storage, f"trial-{job.trial.trial_id}"):
        assert look(1) is None and look(1000) is None, "it lives"
    assert look(59) is None, "it may still report"
    again = look(2)
    assert again and again.trial == job.trial and "not been heard of for 60 s" in played.said[0]
    assert look(1000) is None, "the next attempt has not begun yet"


def test_who_was_seen_in_an_earlier_attempt_is_not_silent_in_this_one(
    stage: Callable[..., Stage], storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    played = stage(make_config())
    job = played.start()
    with taken(storage, f"trial-{job.trial.trial_id}"):
        played.conductor.look_after_silent()
        played.conductor.note(job, TakenOver(job.trial.trial_id))
        now += 1000
    assert played.conductor.start() == job
    played.conductor.look_after_silent()
    assert played.conductor.start() is None and len(played.said) == 1


def test_looks_at_the_leases_are_rare(
    stage: Callable[..., Stage], make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 1000.0, 0

    def held(prefix: str) -> dict[str, object]:
        nonlocal looks
        looks += 1
        return {}

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(inline_executor, "_LOOK", 5.0)
    played = stage(make_config())
    monkeypatch.setattr(played.run.lease, "held", held)
    for _ in range(100):
        now += 0.5
        played.conductor.look_after_silent()
    assert looks == 10


def test_a_stop_after_the_last_trial_is_no_interruption(
    stage: Callable[..., Stage], storage: Storage, make_config: Make
) -> None:
    played = stage(make_config())
    with pytest.raises(Interrupted):
        played.conductor.conclude()
    finish(played, storage, played.start())
    played.run.stop.set()
    played.conductor.conclude()


NODES = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("resources", "nodes", "gpus"),
    [
        (Resources(), [{"CPU": 2.0}], 0.0),
        (Resources(), [{"CPU": 2.0, "GPU": 0.0}], 0.0),
        (Resources(), NODES, 1.0),
        (Resources(0.5, 8), NODES, 0.5),
        (Resources(4), NODES, 4.0),
        (Resources(0, 2), NODES, 0.0),
    ],
)
def test_gpus_are_what_was_asked_or_what_there_is(
    resources: Resources, nodes: list[dict[str, float]], gpus: float
) -> None:
    assert gpus_of(resources, nodes) == gpus


@pytest.mark.parametrize(
    ("resources", "nodes", "numbers"),
    [
        (Resources(5), NODES, "5 GPUs and 1 CPU cores, but no machine here has more than 4 GPUs and 8 cores"),
        (Resources(0, 9), NODES, "0 GPUs and 9 CPU cores, but no machine here has more than 4 GPUs and 8 cores"),
        (Resources(1), [{"CPU": 2.0}], "1 GPUs and 1 CPU cores, but no machine here has more than 0 GPUs and 2 cores"),
        # Each is somewhere, but not both on one machine.
        (Resources(1, 4), [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}], "1 GPUs and 4 CPU cores"),
        (Resources(), [], "0 GPUs and 1 CPU cores"),
    ],
)
def test_what_can_never_be_given_is_refused(resources: Resources, nodes: list[dict[str, float]], numbers: str) -> None:
    with pytest.raises(ResourceError) as caught:
        gpus_of(resources, nodes)
    assert numbers in str(caught.value)
    assert "--set resources.gpus_per_trial=0 --set resources.cpus_per_trial=1" in str(caught.value)


def test_impossible_resources_train_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with taken(storage, "launch-test") as lease, pytest.raises(ResourceError, match="2 GPUs"):
        run_inline(Workload([], frozenset(), storage, Resources(2), lease), print)


def test_it_is_said_what_a_trial_trains_on() -> None:
    assert described(0.5, Resources(), "here") == "each trial trains on 0.5 GPU, here"
    assert described(0, Resources(None, 3), "here") == "no GPU is used: each trial trains on 3 CPU core(s), here"
