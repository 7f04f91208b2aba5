"""The board: where each trial stands after every event, and how long the rest takes, in closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_events import at, end, ended, epoch, launch, planned, played, started

from orchestrator import models
from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.study_status import Eta, Stage, StudyStatus, age, eta_text
from orchestrator.records import State
from orchestrator.study.plan import PlannedTrial

EIGHT = [planned(no) for no in range(8)]


def told(*events: Event) -> StudyStatus:
    """The board after these events, the first of which is the launch."""
    board = StudyStatus.launched(events[0])
    for event in events[1:]:
        board.take(event)
    return board


def stages(board: StudyStatus) -> list[str]:
    return [str(standing.stage) for standing in board.trials.values()]


# Where a trial stands.


def test_students_wait_for_their_teacher_and_nobody_for_one_that_is_there() -> None:
    teacher, other = planned(0), planned(1)
    students = [planned(2, teacher=teacher), planned(3, teacher=other), planned(4, teacher=other)]
    board = told(launch(teacher, other, *students, cached=(teacher,)))
    assert stages(board) == ["finished", "queued", "queued", "waiting", "waiting"]
    assert [(standing.member.trial_id, count) for standing, count in board.waits()] == [(other.trial_id, 2)]
    assert board.cached() == 1
    for event in (started(other, 0), epoch(other, 10, 1), ended(other, 1)):
        board.take(event)
    assert stages(board) == ["finished", "finished", "queued", "queued", "queued"] and board.waits() == []


def test_an_epoch_tells_where_a_trial_is() -> None:
    trial = planned(0)
    board = told(launch(trial), started(trial, 1, epoch=3))
    (standing,) = board.at(Stage.RUNNING)
    assert (standing.epoch, standing.host, standing.device) == (2, "node-1", "cpu, 1 threads")
    board.take(epoch(trial, 3, 2))
    assert (standing.epoch, standing.last, standing.speed, standing.since) == (3, 53.0, 12345.6, at(2))
    board.take(ended(trial, 3))
    assert (standing.stage, standing.epoch, standing.acc) == (Stage.FINISHED, 10, 61.0) and standing.last == 60.0


def test_what_failed_says_why_and_what_stopped_goes_on() -> None:
    first, second, third = EIGHT[:3]
    board = told(
        launch(first, second, third),
        ended(first, 1, State.FAILED, "it broke"),
        ended(second, 1, State.STOPPED, "stopped in epoch 1 of 10"),
        ended(third, 1, State.SKIPPED, "its teacher failed"),
        end(2, failed=1, skipped=1, stopped=1),
    )
    assert stages(board) == ["failed", "stopped", "skipped"]
    reasons = [standing.reason for standing in board.trials.values()]
    assert reasons == ["it broke", "stopped in epoch 1 of 10", "its teacher failed"]
    assert board.trials[first.trial_id].log_name and not board.is_running
    assert board.eta(at(9)) is None, "something is left, and nobody works on it"
    assert age(board, at(9)) == 2


def test_a_lost_worker_and_another_launch_are_waited_for() -> None:
    first, second = EIGHT[:2]
    board = told(
        launch(first, second), started(first, 0), epoch(first, 4, 4),
        Event(EventKind.RETRY, "its worker process was lost", first, time=at(5)),
        Event(EventKind.ELSEWHERE, "another launch trains it", second, time=at(5)),
    )  # fmt: skip
    assert stages(board) == ["retrying", "elsewhere"]
    assert board.trials[first.trial_id].reason == "its worker process was lost"
    board.take(started(first, 6, epoch=3))
    assert stages(board) == ["running", "elsewhere"] and board.trials[first.trial_id].reason is None


def test_a_launch_that_ends_leaves_nothing_running() -> None:
    board = told(launch(*EIGHT), started(EIGHT[0], 1), end(2, stopped=1))
    assert stages(board) == ["stopped", *["queued"] * 7]


def test_words_about_the_launch_and_about_strangers_change_nothing() -> None:
    board = told(
        launch(*EIGHT), Event(EventKind.NOTE, "no GPU is used"), started(planned(99), 1), ended(planned(99), 2)
    )
    assert board.counts() == {Stage.QUEUED: 8} and board.share() == 0


def test_tables_that_were_found_are_counted() -> None:
    teacher = planned(0)
    students = [planned(no, teacher=teacher) for no in range(1, 4)]
    board = told(
        launch(teacher, *students, cached=(teacher,)), *(started(s, 1, is_hit=s != students[0]) for s in students)
    )
    assert board.tables() == (2, 1)


def test_the_share_counts_epochs() -> None:
    long, short = planned(0, epochs=30), planned(1, epochs=10)
    board = told(launch(long, short), started(long, 0), epoch(long, 10, 10))
    assert board.share() == 0.25
    board.take(ended(short, 11))
    assert board.share() == 0.5


def test_a_trial_as_json() -> None:
    board = told(launch(EIGHT[0]), started(EIGHT[0], 0), epoch(EIGHT[0], 1, 1))
    facts = board.trials[EIGHT[0].trial_id].to_json()
    assert facts["stage"] == "running" and (facts["epoch"], facts["nepoch"]) == (1, 10)
    assert (facts["acc"], facts["last_acc"]) == (51.0, 51.0)


# How long it takes.


def test_nothing_is_said_before_something_is_measured() -> None:
    board = told(launch(*EIGHT), started(EIGHT[0], 0))
    assert board.eta(at(5)) is None and eta_text(board.eta(at(5))) == "-"


def test_eight_equal_trials_two_at_a_time() -> None:
    two = EIGHT[:2]
    board = told(launch(*EIGHT), *(started(t, 0) for t in two), *(epoch(t, 1, 1) for t in two))
    assert board.eta(at(1)) == Eta(39, 39)  # 4 rounds of 10 epochs of a second, one of which is over
    assert board.eta(at(1.5)) == Eta(38.5, 38.5), "time passes between two epochs"
    assert board.eta(at(99)) == Eta(38, 38), "but an epoch that takes longer brings nothing nearer"


def test_one_at_a_time_and_an_odd_number() -> None:
    three = EIGHT[:3]
    assert told(launch(*three), started(three[0], 0), epoch(three[0], 1, 1)).eta(at(1)) == Eta(29, 29)
    both = [started(t, 0) for t in three[:2]] + [epoch(t, 1, 1) for t in three[:2]]
    assert told(launch(*three), *both).eta(at(1)) == Eta(19, 19)


def test_students_come_after_their_teacher() -> None:
    teacher = planned(0, epochs=20)
    students = [planned(no, epochs=5, teacher=teacher) for no in (1, 2)]
    other = planned(3, epochs=1, teacher=teacher)
    board = told(
        launch(teacher, other, *students), started(teacher, 0), epoch(teacher, 1, 1), ended(teacher, 1),
        started(other, 2, is_hit=True), epoch(other, 1, 6, 4.0), ended(other, 6),
    )  # fmt: skip
    assert board.eta(at(6)) == Eta(40, 40)  # one at a time was seen: 2 students of 5 epochs of 4 s
    board = told(launch(teacher, *students), started(teacher, 0), epoch(teacher, 1, 1))
    low, high = 19 + 5 * 0.5, None  # side by side perhaps; none like them was measured, and their table is to be built
    assert board.eta(at(1)) == Eta(low, high) and eta_text(Eta(low, high)) == "at least 20 s"


def test_other_work_is_a_rough_guide() -> None:
    small, large = planned(0), planned(1, depth=80)
    board = told(launch(small, large), started(small, 0), epoch(small, 1, 1))
    times = models.multiply_adds("resnet_32_80") / models.multiply_adds("resnet_32_8")
    assert times == pytest.approx(14.6, abs=0.1)
    assert board.eta(at(1)) == Eta(pytest.approx(9 + 10 * times / 2), pytest.approx(9 + 10 * times * 2))
    assert eta_text(board.eta(at(1))) == "80 s to 5 min"


def test_a_live_teacher_costs_a_third_of_training_it() -> None:
    teacher = planned(0, epochs=1)
    student = replace(planned(1, teacher=teacher), teacher_cache="live")
    board = told(launch(teacher, student), started(teacher, 0), epoch(teacher, 1, 3, 3.0), ended(teacher, 3))
    with_teacher = 10 * (3 + 1)  # ten epochs as long as that of the teacher's training, and its forward passes
    assert board.eta(at(3)) == Eta(pytest.approx(with_teacher / 2), pytest.approx(with_teacher * 2))


def test_models_that_this_version_does_not_know_are_no_guide_to_others() -> None:
    known, unknown = planned(0, epochs=1), planned(1)
    unknown = replace(unknown, config=replace(unknown.config, student="vgg_13"))
    event = launch(known, unknown)
    board = told(event, started(known, 0), epoch(known, 1, 1), ended(known, 1))
    assert board.eta(at(1)) == Eta(0, None)
    board = told(event, started(unknown, 0), epoch(unknown, 1, 1))
    assert board.eta(at(1)) == Eta(9, None)


def test_work_like_which_none_was_measured_makes_it_an_at_least() -> None:
    known = planned(0)
    stranger = replace(known, trial_id="f" * 12, config=replace(known.config, dataset="cifar10"))
    board = told(launch(known, stranger), started(known, 0), epoch(known, 1, 1))
    assert board.eta(at(1)) == Eta(9, None)


def test_what_a_trial_takes_beside_its_epochs_is_counted() -> None:
    first, second, third = EIGHT[:3]
    events = [launch(first, second, third), started(first, 0), epoch(first, 1, 1, 10.0), ended(first, 12)]
    assert told(*events).eta(at(12)) == Eta(2 * 102, 2 * 102)  # 10 epochs of 10 s, and 2 s


def test_a_study_that_is_over_takes_no_time() -> None:
    for events in (played(EIGHT, 3, {t.trial_id: 1.0 for t in EIGHT}), [launch(*EIGHT[:1], cached=(EIGHT[0],))]):
        board = told(*events)
        assert board.eta(at(1e6)) == Eta(0, 0) and board.share() == 1


STUDIES = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([8, 20]), st.one_of(st.none(), st.integers(0, 3))),
    min_size=1,
    max_size=9,
)


def study(shape: list[tuple[int, int, int | None]]) -> list[PlannedTrial]:
    """Trials of so many epochs, that depth, and perhaps one of those before as their teacher."""
    trials: list[PlannedTrial] = []
    for no, (epochs, depth, teacher) in enumerate(shape):
        taught_by = trials[teacher] if teacher is not None and teacher < len(trials) else None
        trials.append(
            planned(
                no, epochs=epochs, depth=depth, teacher=taught_by if taught_by and not taught_by.teacher_id else None
            )
        )
    return trials


@settings(max_examples=60, deadline=None)
@given(shape=STUDIES, places=st.integers(1, 3))
def test_more_done_never_raises_it_and_it_ends_at_nothing(
    shape: list[tuple[int, int, int | None]], places: int
) -> None:
    trials = study(shape)
    pace = {trial.trial_id: 1.0 + (trial.config.student == "resnet_32_20") for trial in trials}
    events = list(played(trials, places, pace))
    total = (events[-1].time - at(0)).total_seconds()
    board = StudyStatus.launched(events[0])
    before: float | None = None
    for event in events[1:]:
        board.take(event)
        eta = board.eta(event.time)
        assert eta is None or (eta.low >= 0 and (eta.high is None or eta.high >= eta.low))
        is_known = len({s.member.title.rpartition(" seed ")[0] for s in board.trials.values() if s.measured}) == len(
            {s.member.title.rpartition(" seed ")[0] for s in board.trials.values()}
        )
        if eta and eta.high is not None and is_known and board.most == places:
            passed = (event.time - at(0)).total_seconds()
            assert eta.low == eta.high == pytest.approx(total - passed)
            assert before is None or eta.low <= before + 1e-6
            before = eta.low
    assert board.eta(events[-1].time) == Eta(0, 0) and board.share() == 1


# Words.


def test_what_is_left_in_words() -> None:
    found = [eta_text(eta) for eta in (None, Eta(0, None), Eta(300, None), Eta(300, 310), Eta(300, 900))]
    assert found == ["-", "-", "at least 5 min", "about 5 min", "5 min to 15 min"]


def test_trials_that_are_left_are_not_to_come() -> None:
    teacher, new = planned(0), planned(1)
    student = planned(2, teacher=teacher)
    event = launch(teacher, new, student)
    assert event.facts
    board = StudyStatus.launched(replace(event, facts=replace(event.facts, left=(teacher.trial_id, student.trial_id))))
    assert stages(board) == ["failed", "queued", "skipped"] and board.waits() == []


def test_what_may_run_side_by_side_is_no_lower_bound_in_turn() -> None:
    teacher = planned(0)
    students = [planned(no, teacher=teacher) for no in range(1, 9)]
    board = told(launch(teacher, *students), started(teacher, 0), epoch(teacher, 1, 10))
    eta = board.eta(at(10))  # nobody knows yet how many places there are: perhaps one for each student
    assert eta and eta.low <= 9 * 10 + 10 * 10
