"""The schedule: random graphs of teachers and students with random failures never get stuck."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution._schedule import Schedule
from orchestrator.execution.job import Job, order_jobs
from orchestrator.records import State, TrialConfig
from orchestrator.study.plan import PlannedTrial

MakeJob = Callable[[str, str | None], Job]


@pytest.fixture(scope="session")
def make_job(make_config: Callable[..., TrialConfig]) -> MakeJob:
    """Makes a job from its id and that of its teacher."""

    def make(trial_id: str, teacher_id: str | None = None) -> Job:
        trial = PlannedTrial(trial_id, "student", make_config(), teacher_id, "new", None, None)
        return Job(trial, 1, "study", "nowhere", 1, None, None, None)

    return make


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[str, str | None]]:
    """Trials in the order of a plan: each has no teacher, one that the storage holds, or an earlier trial."""
    count = draw(st.integers(0, 12))
    return [(f"t{i}", draw(st.sampled_from([None, "stored", *(f"t{j}" for j in range(i))]))) for i in range(count)]


def skip(schedule: Schedule, jobs: Sequence[Job], skipped: list[str]) -> None:
    """Ends the dependants of a failed trial, as an executor does."""
    for job in jobs:
        skipped.append(job.trial.trial_id)
        skip(schedule, schedule.end(job.row(State.SKIPPED)), skipped)


@given(graphs(), st.data())
def test_every_trial_ends_once(make_job: MakeJob, graph: list[tuple[str, str | None]], data: st.DataObject) -> None:
    schedule = Schedule([make_job(*node) for node in graph], ["stored"])
    running: list[Job] = []
    finished, failed, skipped = {"stored"}, list[str](), list[str]()
    while not schedule.is_over:
        job = schedule.start() if not running or data.draw(st.booleans(), "start") else None
        if job:
            teacher_id = job.trial.teacher_id
            assert teacher_id is None or teacher_id in finished
            running.append(job)
            assert schedule.find_running(job.trial.trial_id) is job
            continue
        assert running, "stuck: trials wait, and none is running"
        ended = running.pop(data.draw(st.integers(0, len(running) - 1), "end"))
        is_good = data.draw(st.booleans(), "good")
        dependants = schedule.end(ended.row(State.FINISHED if is_good else State.FAILED))
        assert schedule.find_running(ended.trial.trial_id) is None
        assert not (is_good and dependants)
        (finished.add if is_good else failed.append)(ended.trial.trial_id)
        skip(schedule, dependants, skipped)
    assert schedule.start() is None and not schedule.has_waiting
    assert sorted([*finished, *failed, *skipped]) == sorted(["stored", *(trial_id for trial_id, _ in graph)])
    lost = {*failed, *skipped}
    assert skipped == [] or all(dict(graph)[trial_id] in lost for trial_id in skipped)


@given(graphs())
def test_trials_wait_for_their_teachers(make_job: MakeJob, graph: list[tuple[str, str | None]]) -> None:
    schedule = Schedule([make_job(*node) for node in graph], ["stored"])
    started = []
    while job := schedule.start():
        started.append(job.trial.trial_id)
    assert started == [trial_id for trial_id, teacher in graph if teacher in (None, "stored")]
    assert schedule.has_waiting == (len(started) < len(graph))


def test_there_is_no_barrier_between_teachers_and_students(make_job: MakeJob) -> None:
    fast, slow = make_job("fast", None), make_job("slow", None)
    students = [make_job("a", "fast"), make_job("b", "slow"), make_job("c", "fast")]
    schedule = Schedule([fast, slow, *students])
    assert [schedule.start(), schedule.start(), schedule.start()] == [fast, slow, None]
    schedule.end(fast.row(State.FINISHED))
    assert [schedule.start(), schedule.start(), schedule.start()] == [students[0], students[2], None]
    assert schedule.find_running("slow") is slow


def test_teachers_start_first_then_the_longest(make_config: Callable[..., TrialConfig]) -> None:
    def make(trial_id: str, model: str, epochs: int = 1, teacher_id: str | None = None) -> Job:
        config = make_config(student=model, epochs=epochs)
        trial = PlannedTrial(trial_id, "student", config, teacher_id, "new", None, None)
        return Job(trial, 1, "study", "nowhere", 1, None, None, None)

    jobs = [
        make("short", "resnet_32_8"),
        make("long", "resnet_32_8", 5),
        make("deep", "resnet_32_56"),
        make("also short", "resnet_32_8"),
        make("student", "resnet_32_8", 9, "teacher"),
        make("teacher", "resnet_32_8"),
    ]
    expected = ["teacher", "deep", "student", "long", "short", "also short"]
    assert [job.trial.trial_id for job in order_jobs(jobs)] == expected
    schedule = Schedule(order_jobs(jobs))
    started = [job.trial.trial_id for job in iter(schedule.start, None)]
    assert started == ["teacher", "deep", "long", "short", "also short"], "the student still waits"
