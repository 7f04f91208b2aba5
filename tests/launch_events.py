"""Invented events of launches, for tests of the code that shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from conftest import TINY

from orchestrator.execution.job import Job
from orchestrator.monitor.events import Event, EventKind, LaunchStarted, LaunchTotals, TrialStarted
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.records import EpochRecord, Failure, State, TrialRecord
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.short_names import names
from orchestrator.study.stored_studies import Member

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def ignore(event: Event) -> None:
    """Ignores an event, for launches whose output a test does not check."""


def at(seconds: float) -> datetime:
    """This many seconds after the start of the launch."""
    return START + timedelta(seconds=seconds)


def planned(no: int, *, epochs: int = 10, teacher: PlannedTrial | None = None, depth: int = 8) -> PlannedTrial:
    """A trial; with a teacher it uses a table."""
    config = replace(TINY, seed=no, epochs=epochs, student=f"resnet_32_{depth}")
    if teacher:
        config = replace(config, method="logit", teacher=teacher.config, teacher_cache="table")
    role, teacher_id, mode = ("student", teacher.trial_id, "table") if teacher else ("student", None, None)
    return PlannedTrial(f"{no:012x}", role, config, teacher_id, "new", mode, None)


def member(trial: PlannedTrial, *, is_cached: bool = False, name: str = "") -> Member:
    """The trial as a member of a study."""
    config, teacher = trial.config, trial.config.teacher
    return Member(
        trial.trial_id, trial.role, trial.title(), trial.teacher_id, config.epochs, trial.teacher_cache, is_cached,
        config.method, config.dataset, config.student, teacher.student if teacher else None, name,
    )  # fmt: skip


def launch(*trials: PlannedTrial, cached: tuple[PlannedTrial, ...] = (), executor: str = "ray") -> Event:
    """The first event."""
    named = zip(trials, names([trial.config for trial in trials]), strict=True)
    members = tuple(member(trial, is_cached=trial in cached, name=name) for trial, name in named)
    return Event(EventKind.LAUNCH, "", facts=LaunchStarted("tiny", executor, members), time=at(0))


def started(trial: PlannedTrial, seconds: float, *, epoch: int = 1, is_hit: bool | None = None) -> Event:
    """A worker has started the trial."""
    facts = TrialStarted("node-1", 4711, "cpu, 1 threads", epoch, trial.teacher_cache, is_hit)
    return Event(EventKind.STARTED, "started", trial, facts, time=at(seconds))


def epoch(trial: PlannedTrial, number: int, seconds: float, took: float = 1.0) -> Event:
    """An epoch of the trial has ended; it took this many seconds."""
    facts = EpochRecord(number, 0.1, 2.0, 2.0, None, 50.0, 1.0, 50.0 + number, None, took, 12345.6)
    return Event(EventKind.EPOCH, f"epoch {number}", trial, facts, time=at(seconds))


def row(trial: PlannedTrial, state: State, error: str | None = None) -> TrialRecord:
    """The row of the trial."""
    found = Job(trial, 1, "tiny", "nowhere", 1, None, None, None).row(state, error)
    if state is State.FINISHED:
        found = replace(found, acc=61.0, epoch=2, last_acc=60.0, images_per_second=1000.0, seconds=1.0)
    return replace(found, failure=Failure.ERROR if state is State.FAILED else None)


def ended(trial: PlannedTrial, seconds: float, state: State = State.FINISHED, error: str | None = None) -> Event:
    """The trial has ended."""
    log, where = ((), None) if state is not State.FAILED else (("Traceback:", "  it broke"), f"logs/{trial.trial_id}")
    return Event(EventKind.ENDED, str(state), trial, row(trial, state, error), log, where, at(seconds))


def end(seconds: float, **states: int) -> Event:
    """The last event."""
    counts = {State(name): count for name, count in states.items()}
    return Event(EventKind.END, "over", facts=LaunchTotals(counts, seconds), time=at(seconds))


def played(trials: list[PlannedTrial], slots: int, pace: dict[str, float]) -> Iterator[Event]:
    """All events of a launch with constant speeds, by time; trials start in the order of the plan, after teachers."""
    yield launch(*trials)
    waiting, done, time = list(trials), set[str](), 0.0
    lives: list[tuple[float, int, PlannedTrial]] = []
    while waiting or lives:
        for trial in list(waiting):
            if len(lives) < slots and (trial.teacher_id is None or trial.teacher_id in done):
                waiting.remove(trial)
                yield started(trial, time, is_hit=True if trial.teacher_id else None)
                lives.append((time + pace[trial.trial_id], 1, trial))
        lives.sort(key=lambda live: (live[0], live[2].trial_id))
        time, number, trial = lives.pop(0)
        yield epoch(trial, number, time, pace[trial.trial_id])
        if number < trial.config.epochs:
            lives.append((time + pace[trial.trial_id], number + 1, trial))
        else:
            done.add(trial.trial_id)
            yield ended(trial, time)
    yield end(time, finished=len(trials))


def status_after(*events: Event) -> StudyStatus:
    """The status after these events, the first of which is the launch."""
    status = StudyStatus.of_launch(events[0])
    for event in events[1:]:
        status.apply(event)
    return status


TEACHER = planned(0, epochs=20)
MANY = [TEACHER, *(planned(no, epochs=20, teacher=TEACHER) for no in range(1, 1000))]


def busy() -> StudyStatus:
    """A study of 1,000 trials, of which 20 run and 5 failed."""
    events = [launch(*MANY), started(TEACHER, 0), epoch(TEACHER, 20, 20), ended(TEACHER, 20)]
    for trial in MANY[1:21]:
        events += [started(trial, 21, is_hit=trial is not MANY[1]), epoch(trial, 7, 28)]
    events += [ended(trial, 29, State.FAILED, "it broke") for trial in MANY[100:105]]
    return status_after(*events)
