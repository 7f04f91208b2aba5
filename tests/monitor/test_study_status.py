"""The status of a study: the stage of each trial after every event, and what the view needs."""

from __future__ import annotations

from dataclasses import replace

from launch_events import at, end, ended, epoch, launch, planned, started, status_after

from orchestrator.monitor.eta import estimate
from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.monitor.trial_status import Stage
from orchestrator.records import State

EIGHT = [planned(no) for no in range(8)]


def stages(status: StudyStatus) -> list[str]:
    return [str(trial_status.stage) for trial_status in status.trials.values()]


def test_students_wait_for_their_teacher_unless_it_is_finished() -> None:
    teacher, other = planned(0), planned(1)
    students = [planned(2, teacher=teacher), planned(3, teacher=other), planned(4, teacher=other)]
    status = status_after(launch(teacher, other, *students, cached=(teacher,)))
    assert stages(status) == ["finished", "queued", "queued", "waiting", "waiting"]
    assert [(found.member.trial_id, count) for found, count in status.awaited_teachers()] == [(other.trial_id, 2)]
    assert status.count_cached() == 1
    for event in (started(other, 0), epoch(other, 10, 1), ended(other, 1)):
        status.apply(event)
    assert stages(status) == ["finished", "finished", "queued", "queued", "queued"] and status.awaited_teachers() == []


def test_an_epoch_updates_the_progress_of_its_trial() -> None:
    trial = planned(0)
    status = status_after(launch(trial), started(trial, 1, epoch=3))
    (trial_status,) = status.in_stage(Stage.RUNNING)
    assert (trial_status.progress.epoch, trial_status.host, trial_status.device) == (2, "node-1", "cpu, 1 threads")
    status.apply(epoch(trial, 3, 2))
    found = trial_status.progress
    assert (found.epoch, found.last, found.speed, trial_status.updated) == (3, 53.0, 12345.6, at(2))
    status.apply(ended(trial, 3))
    found = trial_status.progress
    assert (trial_status.stage, found.epoch, found.acc, found.last) == (Stage.FINISHED, 10, 61.0, 60.0)


def test_trials_that_ended_have_a_reason() -> None:
    first, second, third = EIGHT[:3]
    status = status_after(
        launch(first, second, third),
        ended(first, 1, State.FAILED, "it broke"),
        ended(second, 1, State.STOPPED, "stopped in epoch 1 of 10"),
        ended(third, 1, State.SKIPPED, "its teacher failed"),
        end(2, failed=1, skipped=1, stopped=1),
    )
    assert stages(status) == ["failed", "stopped", "skipped"]
    reasons = [trial_status.reason for trial_status in status.trials.values()]
    assert reasons == ["it broke", "stopped in epoch 1 of 10", "its teacher failed"]
    assert status.trials[first.trial_id].log_name and not status.is_running
    assert estimate(status, at(9)) is None, "trials are left, and no launch runs"
    assert status.seconds_since_start(at(9)) == 2


def test_a_lost_worker_and_another_launch_are_waited_for() -> None:
    first, second = EIGHT[:2]
    status = status_after(
        launch(first, second), started(first, 0), epoch(first, 4, 4),
        Event(EventKind.RETRY, "its worker process was lost", first, time=at(5)),
        Event(EventKind.ELSEWHERE, "another launch trains it", second, time=at(5)),
    )  # fmt: skip
    assert stages(status) == ["retrying", "elsewhere"]
    assert status.trials[first.trial_id].reason == "its worker process was lost"
    status.apply(started(first, 6, epoch=3))
    assert stages(status) == ["running", "elsewhere"] and status.trials[first.trial_id].reason is None


def test_a_launch_that_ends_leaves_nothing_running() -> None:
    status = status_after(launch(*EIGHT), started(EIGHT[0], 1), end(2, stopped=1))
    assert stages(status) == ["stopped", *["queued"] * 7]


def test_notes_and_events_of_other_studies_change_nothing() -> None:
    status = status_after(
        launch(*EIGHT), Event(EventKind.NOTE, "no GPU is used"), started(planned(99), 1), ended(planned(99), 2)
    )
    assert status.counts() == {Stage.QUEUED: 8} and status.share_done() == 0


def test_tables_that_were_found_are_counted() -> None:
    teacher = planned(0)
    students = [planned(no, teacher=teacher) for no in range(1, 4)]
    status = status_after(
        launch(teacher, *students, cached=(teacher,)), *(started(s, 1, is_hit=s != students[0]) for s in students)
    )
    assert status.count_tables() == (2, 1)


def test_the_share_done_counts_epochs() -> None:
    long, short = planned(0, epochs=30), planned(1, epochs=10)
    status = status_after(launch(long, short), started(long, 0), epoch(long, 10, 10))
    assert status.share_done() == 0.25
    status.apply(ended(short, 11))
    assert status.share_done() == 0.5


def test_a_trial_as_json() -> None:
    status = status_after(launch(EIGHT[0]), started(EIGHT[0], 0), epoch(EIGHT[0], 1, 1))
    facts = status.trials[EIGHT[0].trial_id].to_json()
    assert facts["stage"] == "running" and (facts["epoch"], facts["nepoch"]) == (1, 10)
    assert (facts["acc"], facts["last_acc"]) == (51.0, 51.0)


def test_a_launch_does_not_wait_for_trials_that_it_leaves_out() -> None:
    teacher, new = planned(0), planned(1)
    student = planned(2, teacher=teacher)
    event = launch(teacher, new, student)
    assert event.facts
    left = (teacher.trial_id, student.trial_id)
    status = StudyStatus.of_launch(replace(event, facts=replace(event.facts, left=left)))
    assert stages(status) == ["failed", "queued", "skipped"] and status.awaited_teachers() == []
