"""The estimate of the time left, in closed forms, and its text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_events import at, ended, epoch, launch, planned, played, started, status_after

from orchestrator import models
from orchestrator.monitor.eta import Eta, estimate, format_eta
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.monitor.trial_status import TrialStatus
from orchestrator.study.plan import PlannedTrial

EIGHT = [planned(no) for no in range(8)]


def test_nothing_is_estimated_before_an_epoch_was_measured() -> None:
    status = status_after(launch(*EIGHT), started(EIGHT[0], 0))
    assert estimate(status, at(5)) is None and format_eta(estimate(status, at(5))) == "-"


def test_eight_equal_trials_two_at_a_time() -> None:
    two = EIGHT[:2]
    status = status_after(launch(*EIGHT), *(started(t, 0) for t in two), *(epoch(t, 1, 1) for t in two))
    assert estimate(status, at(1)) == Eta(39, 39)  # 4 rounds of 10 epochs of a second, one of which is over
    assert estimate(status, at(1.5)) == Eta(38.5, 38.5), "time passes between two epochs"
    assert estimate(status, at(99)) == Eta(38, 38), "but an epoch that takes longer brings nothing nearer"


def test_one_at_a_time_and_an_odd_number() -> None:
    three = EIGHT[:3]
    assert estimate(status_after(launch(*three), started(three[0], 0), epoch(three[0], 1, 1)), at(1)) == Eta(29, 29)
    both = [started(t, 0) for t in three[:2]] + [epoch(t, 1, 1) for t in three[:2]]
    assert estimate(status_after(launch(*three), *both), at(1)) == Eta(19, 19)


def test_students_come_after_their_teacher() -> None:
    teacher = planned(0, epochs=20)
    students = [planned(no, epochs=5, teacher=teacher) for no in (1, 2)]
    other = planned(3, epochs=1, teacher=teacher)
    status = status_after(
        launch(teacher, other, *students), started(teacher, 0), epoch(teacher, 1, 1), ended(teacher, 1),
        started(other, 2, is_hit=True), epoch(other, 1, 6, 4.0), ended(other, 6),
    )  # fmt: skip
    assert estimate(status, at(6)) == Eta(40, 40)  # so far one at a time ran: 2 students of 5 epochs of 4 s
    status = status_after(launch(teacher, *students), started(teacher, 0), epoch(teacher, 1, 1))
    low, high = 19 + 5 * 0.5, None  # side by side perhaps; none like them was measured, and their table is to be built
    assert estimate(status, at(1)) == Eta(low, high) and format_eta(Eta(low, high)) == "at least 20 s"


def test_other_work_is_a_rough_guide() -> None:
    small, large = planned(0), planned(1, depth=80)
    status = status_after(launch(small, large), started(small, 0), epoch(small, 1, 1))
    times = models.multiply_adds("resnet_32_80") / models.multiply_adds("resnet_32_8")
    assert times == pytest.approx(14.6, abs=0.1)
    assert estimate(status, at(1)) == Eta(pytest.approx(9 + 10 * times / 2), pytest.approx(9 + 10 * times * 2))
    assert format_eta(estimate(status, at(1))) == "80 s to 5 min"


def test_a_live_teacher_costs_a_third_of_training_it() -> None:
    teacher = planned(0, epochs=1)
    student = replace(planned(1, teacher=teacher), teacher_cache="live")
    status = status_after(launch(teacher, student), started(teacher, 0), epoch(teacher, 1, 3, 3.0), ended(teacher, 3))
    with_teacher = 10 * (3 + 1)  # ten epochs as long as that of the teacher's training, and its forward passes
    assert estimate(status, at(3)) == Eta(pytest.approx(with_teacher / 2), pytest.approx(with_teacher * 2))


def test_models_that_this_version_does_not_know_are_no_guide_to_others() -> None:
    known, unknown = planned(0, epochs=1), planned(1)
    unknown = replace(unknown, config=replace(unknown.config, student="vit_13"))
    event = launch(known, unknown)
    assert estimate(status_after(event, started(known, 0), epoch(known, 1, 1), ended(known, 1)), at(1)) == Eta(0, None)
    assert estimate(status_after(event, started(unknown, 0), epoch(unknown, 1, 1)), at(1)) == Eta(9, None)


def test_unknown_work_leaves_only_a_lower_bound() -> None:
    known = planned(0)
    stranger = replace(known, trial_id="f" * 12, config=replace(known.config, dataset="cifar10"))
    status = status_after(launch(known, stranger), started(known, 0), epoch(known, 1, 1))
    assert estimate(status, at(1)) == Eta(9, None)


def test_the_overhead_of_a_trial_counts() -> None:
    first, second, third = EIGHT[:3]
    events = [launch(first, second, third), started(first, 0), epoch(first, 1, 1, 10.0), ended(first, 12)]
    assert estimate(status_after(*events), at(12)) == Eta(2 * 102, 2 * 102)  # 10 epochs of 10 s, and 2 s


def test_a_finished_study_takes_no_time() -> None:
    for events in (played(EIGHT, 3, {t.trial_id: 1.0 for t in EIGHT}), [launch(*EIGHT[:1], cached=(EIGHT[0],))]):
        status = status_after(*events)
        assert estimate(status, at(1e6)) == Eta(0, 0) and status.share_done() == 1


STUDIES = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([8, 20]), st.one_of(st.none(), st.integers(0, 3))),
    min_size=1,
    max_size=9,
)


def work_of(trials: Iterable[TrialStatus], *, measured: bool = False) -> set[tuple[str, str, str | None]]:
    """The kinds of work of these trials, or only of those with a measured epoch."""
    members = [trial.member for trial in trials if trial.progress.measured or not measured]
    return {(member.method, member.student, member.teacher_id and member.teacher) for member in members}


def study(shape: list[tuple[int, int, int | None]]) -> list[PlannedTrial]:
    """Trials with these epochs and depths, some of them with an earlier trial as their teacher."""
    trials: list[PlannedTrial] = []
    for no, (epochs, depth, teacher) in enumerate(shape):
        taught_by = trials[teacher] if teacher is not None and teacher < len(trials) else None
        trials.append(
            planned(
                no, epochs=epochs, depth=depth, teacher=taught_by if taught_by and not taught_by.teacher_id else None
            )
        )
    return trials


@settings(max_examples=60)
@given(shape=STUDIES, slots=st.integers(1, 3))
def test_the_estimate_never_rises_and_ends_at_zero(shape: list[tuple[int, int, int | None]], slots: int) -> None:
    trials = study(shape)
    pace = {trial.trial_id: 1.0 + (trial.config.student == "resnet_32_20") for trial in trials}
    events = list(played(trials, slots, pace))
    total = (events[-1].time - at(0)).total_seconds()
    status = StudyStatus.of_launch(events[0])
    before: float | None = None
    for event in events[1:]:
        status.apply(event)
        eta = estimate(status, event.time)
        assert eta is None or (eta.low >= 0 and (eta.high is None or eta.high >= eta.low))
        is_known = work_of(status.trials.values(), measured=True) == work_of(status.trials.values())
        if eta and eta.high is not None and is_known and status.most_running == slots:
            passed = (event.time - at(0)).total_seconds()
            assert eta.low == eta.high == pytest.approx(total - passed)
            assert before is None or eta.low <= before + 1e-6
            before = eta.low
    assert estimate(status, events[-1].time) == Eta(0, 0) and status.share_done() == 1


def test_the_time_left_as_text() -> None:
    found = [format_eta(eta) for eta in (None, Eta(0, None), Eta(300, None), Eta(300, 310), Eta(300, 900))]
    assert found == ["-", "-", "at least 5 min", "about 5 min", "5 min to 15 min"]


def test_students_that_may_run_at_the_same_time_do_not_add_up_in_the_lower_bound() -> None:
    teacher = planned(0)
    students = [planned(no, teacher=teacher) for no in range(1, 9)]
    status = status_after(launch(teacher, *students), started(teacher, 0), epoch(teacher, 1, 10))
    eta = estimate(status, at(10))  # the number of workers is not known yet: there may be one for each student
    assert eta and eta.low <= 9 * 10 + 10 * 10


def test_a_plan_of_an_older_version_names_no_models_and_nothing_is_compared() -> None:
    first, second = EIGHT[:2]
    event = launch(first, second)
    assert event.facts
    members = tuple(replace(one, method="", dataset="", student="", name="") for one in event.facts.members)
    status = status_after(
        replace(event, facts=replace(event.facts, members=members)), started(first, 0), epoch(first, 1, 1)
    )
    assert estimate(status, at(1)) == Eta(9, None)
