"""The executor in this process: one trial after another, or several at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from workloads import ON_CPU, Make, Reported, jobs_of, listen, student, take

from orchestrator.data.prepare import prepare_dataset
from orchestrator.errors import Interrupted, ResourceError, StorageError
from orchestrator.execution import inline
from orchestrator.execution.attempt import Report
from orchestrator.execution.controller import Workload
from orchestrator.execution.job import Job
from orchestrator.records import EpochRecord, State, TrialConfig, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study.values import Resources


@pytest.fixture(autouse=True)
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many CPU cores there are, and so how many trials run at a time; one if a test says nothing."""

    def set_cores(count: int) -> None:
        monkeypatch.setattr("orchestrator.machine.limits.cores", lambda: count)

    set_cores(1)
    return set_cores


def run(storage: Storage, *configs: TrialConfig, ready: frozenset[str] = frozenset()) -> Reported:
    """Runs trials in this process; returns what was reported."""
    reported: Reported = []
    with take(storage, "launch-test") as lease:
        jobs = jobs_of(storage, *configs)
        work = Workload(jobs, ready, storage, ON_CPU, lease)
        inline.run(work, listen(lambda *pair: reported.append(pair)))
    return reported


def small(make_config: Make, **overrides: object) -> TrialConfig:
    """A trial with two steps per epoch."""
    return make_config(limit_train=64, limit_test=50, **overrides)


def test_a_failed_teacher_skips_its_students_alone(storage: Storage, make_config: Make) -> None:
    teacher = small(make_config, lr=1e6, epochs=5)
    pupil = student(teacher, "logit")
    pupils_pupil = student(pupil, "st")
    reported = run(storage, teacher, pupil, pupils_pupil, small(make_config))
    ended = {trial_id: record for trial_id, record in reported if isinstance(record, TrialRecord)}
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
    reported = run(storage, student(teacher, "logit"), ready=frozenset([teacher.trial_id()]))
    assert isinstance(reported[-1][1], TrialRecord) and reported[-1][1].state is State.FINISHED


def test_a_stop_is_not_a_failed_trial(storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(job: Job, stopping: Callable[[], bool]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.execution.inline.run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(storage, small(make_config))
    assert store.read_trials(storage) == []


def test_a_stop_ends_what_runs_and_starts_nothing_more(storage: Storage, make_config: Make) -> None:
    configs = [small(make_config, seed=seed, epochs=3) for seed in range(3)]
    reported: Reported = []

    def watch(*pair: Any) -> None:
        reported.append(pair)
        if len(reported) == 6:  # the second epoch of the second trial
            work.stop.set()

    with take(storage, "launch-test") as lease:
        work = Workload(jobs_of(storage, *configs), frozenset(), storage, ON_CPU, lease)
        with pytest.raises(Interrupted, match="the same command resumes from there"):
            inline.run(work, listen(watch))
    states = store.read_states(storage)
    assert [states.get(config.trial_id()) for config in configs] == [State.FINISHED, State.STOPPED, None]
    again = run(storage, *configs)
    assert [type(record) for _, record in again] == [TrialRecord] + [EpochRecord, TrialRecord] + [EpochRecord] * 3 + [
        TrialRecord
    ]
    assert set(store.read_states(storage).values()) == {State.FINISHED}


# Several trials at the same time.


def timeless(row: TrialRecord) -> TrialRecord:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    return replace(row, seconds=0.0, images_per_second=0.0, start_time=then, end_time=then)


def test_trials_that_run_at_the_same_time_give_the_same_results(
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
    prepare_dataset("digits", None, together)
    side_by_side(3)
    reported = run(together, *configs)
    kinds = [type(record) for _, record in reported]
    assert kinds != sorted(kinds, key=str), "no trial started before another had ended"
    first, second = (store.read_trials(each) for each in (storage, together))
    assert list(map(timeless, second)) == list(map(timeless, first))
    for config in configs:
        name = storage.weights(config.trial_id())
        assert storage.backend.read(name) == together.backend.read(name)


def test_no_more_trials_run_at_a_time_than_allowed(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    train, running = inline.run_trial, set()

    def watched(job: Job, stopping: Callable[[], bool]) -> Iterator[Report]:
        running.add(job.trial.trial_id)
        for report in train(job, stopping):
            counts.append(len(running))
            if isinstance(report, TrialRecord):
                running.discard(job.trial.trial_id)
            yield report

    monkeypatch.setattr(inline, "run_trial", watched)
    side_by_side(2)
    run(storage, *(small(make_config, seed=seed, epochs=2) for seed in range(5)))
    assert max(counts) == 2
    assert len(store.read_trials(storage)) == 5


@pytest.mark.parametrize(("trials", "threads"), [(1, 4), (2, 2), (3, 1)])
def test_few_trials_share_all_cores(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None], trials: int, threads: int
) -> None:
    side_by_side(4)
    configs = [small(make_config, seed=seed) for seed in range(trials)]
    jobs = [replace(job, peers=trials) for job in jobs_of(storage, *configs)]
    with take(storage, "launch-test") as lease:
        inline.run(Workload(jobs, frozenset(), storage, Resources(gpus_per_trial=0), lease), listen(lambda *pair: None))
    assert [row.threads for row in store.read_trials(storage)] == [threads] * trials


def test_a_thread_trains_one_trial_after_another(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    train = inline.run_trial

    def watched(job: Job, stopping: Callable[[], bool]) -> Iterator[Report]:
        seen.append(threading.get_ident())
        yield from train(job, stopping)

    monkeypatch.setattr(inline, "run_trial", watched)
    side_by_side(2)
    run(storage, *(small(make_config, seed=seed) for seed in range(6)))
    assert len(seen) == 6 and len(set(seen)) == 2


def test_each_thread_stays_on_its_gpu(storage: Storage, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, set[int]] = {}

    def watched(job: Job, stopping: Callable[[], bool]) -> Iterator[Report]:
        seen.setdefault(threading.get_ident(), set()).add(job.gpu)
        yield job.row(State.FINISHED)

    monkeypatch.setattr(inline, "run_trial", watched)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    jobs = jobs_of(storage, *(small(make_config, seed=seed) for seed in range(12)))
    with take(storage, "launch-test") as lease:
        work = Workload(jobs, frozenset(), storage, Resources(gpus_per_trial=0.5), lease)
        inline.run(work, listen(lambda *pair: None))
    assert all(len(gpus) == 1 for gpus in seen.values())
    assert set().union(*seen.values()) == {0, 1, 2}


def test_a_stop_ends_all_trials_that_run_at_the_same_time(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None]
) -> None:
    side_by_side(2)
    configs = [small(make_config, seed=seed, epochs=200) for seed in range(3)]
    with take(storage, "launch-test") as lease:
        work = Workload(jobs_of(storage, *configs), frozenset(), storage, ON_CPU, lease)
        with pytest.raises(Interrupted):
            inline.run(work, listen(lambda *pair: work.stop.set()))
    states = store.read_states(storage)
    assert [states.get(config.trial_id()) for config in configs] == [State.STOPPED, State.STOPPED, None]


def test_an_error_in_one_thread_ends_the_launch(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job, stopping: Callable[[], bool]) -> Iterator[Report]:
        raise SystemError("a bug")
        yield

    monkeypatch.setattr(inline, "run_trial", broken)
    side_by_side(2)
    with pytest.raises(SystemError, match="a bug"):
        run(storage, small(make_config), small(make_config, seed=1))


def test_an_error_lets_the_others_write_their_checkpoints(
    storage: Storage, make_config: Make, side_by_side: Callable[[int], None]
) -> None:
    side_by_side(2)
    configs = [small(make_config, seed=seed, epochs=200) for seed in range(2)]

    def watch(*pair: Any) -> None:
        raise StorageError("the disk is full")

    with take(storage, "launch-test") as lease, pytest.raises(StorageError, match="the disk is full"):
        inline.run(Workload(jobs_of(storage, *configs), frozenset(), storage, ON_CPU, lease), listen(watch))
    assert set(store.read_states(storage).values()) == {State.STOPPED}
    assert not [thread for thread in threading.enumerate() if thread.name == "kdctl trials"]


def test_impossible_resources_train_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with take(storage, "launch-test") as lease, pytest.raises(ResourceError, match="2 GPUs"):
        inline.run(Workload([], frozenset(), storage, Resources(2), lease), print)
