"""The meter: after every event, the values that a reader would compute by hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_events import at, end, ended, epoch, launch, planned, played, started

from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.metrics import METRICS, Meter, Sample, label, labels_of
from orchestrator.monitor.study_status import Stage
from orchestrator.records import EpochRecord, State
from orchestrator.study.plan import PlannedTrial


def after(*events: Event) -> Meter:
    meter = Meter(events[0])
    for event in events[1:]:
        meter.apply(event)
    return meter


def of(meter: Meter, trial: PlannedTrial, seconds: float) -> dict[str, float]:
    """The gauges of a trial, this many seconds after the launch began."""
    return {
        sample.name: sample.value
        for sample in meter.gauges(at(seconds))
        if sample.labels.get("trial_id") == trial.trial_id
    }


def states(meter: Meter) -> dict[str, float]:
    return {s.labels["state"]: s.value for s in meter.gauges(at(1)) if s.name == "kdctl_trials" and s.value}


def test_an_epoch_has_the_values_of_its_record() -> None:
    trial = planned(0)
    meter = after(launch(trial), started(trial, 1, epoch=3))
    assert of(meter, trial, 2) == {"kdctl_trial_running": 1, "kdctl_epoch": 2, "kdctl_epochs": 10}
    meter.apply(epoch(trial, 3, 3, took=2.5))
    assert of(meter, trial, 4) == {
        "kdctl_trial_running": 1, "kdctl_epoch": 3, "kdctl_epochs": 10, "kdctl_epoch_duration_seconds": 2.5,
        "kdctl_test_accuracy_percent": 53.0, "kdctl_train_loss": 2.0, "kdctl_images_per_second": 12345.6,
    }  # fmt: skip


def test_a_trial_that_ended_has_running_0_for_a_while_and_then_no_series() -> None:
    trial = planned(0)
    meter = after(launch(trial), started(trial, 1), epoch(trial, 1, 2), ended(trial, 10))
    assert of(meter, trial, 10) == of(meter, trial, 69) == {"kdctl_trial_running": 0}
    assert of(meter, trial, 70) == {} and not meter._running and not meter._ended


@pytest.mark.parametrize("kind", [EventKind.RETRY, EventKind.ELSEWHERE])
def test_a_trial_that_waits_again_does_not_run_and_starts_without_old_values(kind: EventKind) -> None:
    trial = planned(0)
    meter = after(launch(trial), started(trial, 1), epoch(trial, 1, 2), Event(kind, "lost", trial, time=at(3)))
    assert of(meter, trial, 4) == {"kdctl_trial_running": 0}
    meter.apply(started(trial, 5))
    assert of(meter, trial, 6) == {"kdctl_trial_running": 1, "kdctl_epoch": 0, "kdctl_epochs": 10}


def test_trials_are_counted_by_state_and_every_state_has_its_number() -> None:
    teacher, alone, done = planned(0), planned(1), planned(2)
    student = planned(3, teacher=teacher)
    meter = after(launch(teacher, alone, done, student, cached=(done,)), started(teacher, 0))
    assert states(meter) == {"running": 1, "queued": 1, "finished": 1, "waiting": 1}
    known = {s.labels["state"] for s in meter.gauges(at(1)) if s.name == "kdctl_trials"}
    assert known == set(map(str, Stage))  # so that a count falls to 0 where it would otherwise stay
    meter.apply(ended(teacher, 2, State.FAILED, "broken"))
    meter.apply(ended(student, 2, State.SKIPPED, "its teacher failed"))
    assert states(meter) == {"failed": 1, "skipped": 1, "queued": 1, "finished": 1}


def test_starts_with_and_without_a_table_are_counted() -> None:
    teacher = planned(0)
    first, second, third = (planned(no, teacher=teacher) for no in (1, 2, 3))
    meter = after(
        launch(teacher, first, second, third, cached=(teacher,)),
        started(first, 1, is_hit=False), started(second, 2, is_hit=True), started(second, 3, is_hit=True),
        started(third, 4),
    )  # fmt: skip
    own = {"study": "tiny"}
    assert meter.counters() == [
        Sample("kdctl_table_hits_total", own, 2),
        Sample("kdctl_table_misses_total", own, 1),
    ]


def test_the_time_left_is_the_estimate_and_absent_if_unknown() -> None:
    def left(meter: Meter, seconds: float) -> dict[str, float]:
        found = meter.gauges(at(seconds))
        return {s.labels["bound"]: s.value for s in found if s.name == "kdctl_remaining_seconds"}

    first, second = planned(0), planned(1)
    meter = after(launch(first, second), started(first, 0))
    assert left(meter, 1) == {}
    meter.apply(epoch(first, 1, 2, took=2.0))
    assert left(meter, 2) == {"low": 38.0, "high": 38.0}  # 9 epochs, then 10 more, 2 s each
    other = planned(2, depth=1202)
    unknown = replace(other, config=replace(other.config, dataset="cifar10"))
    meter = after(launch(first, unknown), started(first, 0), epoch(first, 1, 2, took=2.0))
    assert left(meter, 2) == {"low": 18.0}


def test_a_loss_of_nan_is_no_series() -> None:
    trial = planned(0)
    event = epoch(trial, 1, 1)
    assert isinstance(event.facts, EpochRecord)
    meter = after(launch(trial), started(trial, 0), replace(event, facts=replace(event.facts, train_loss=math.inf)))
    assert "kdctl_train_loss" not in of(meter, trial, 2) and "kdctl_epoch" in of(meter, trial, 2)


@settings(max_examples=50)
@given(slots=st.integers(1, 4), count=st.integers(1, 12))
def test_only_what_runs_has_series_of_its_own_and_the_counts_are_those_of_the_study(slots: int, count: int) -> None:
    teacher = planned(0, epochs=2)
    trials = [teacher, *(planned(no, epochs=2, teacher=teacher if no % 2 else None) for no in range(1, count))]
    meter: Meter | None = None
    running: set[str] = set()
    for event in played(trials, slots, {trial.trial_id: 1.0 + no % 3 for no, trial in enumerate(trials)}):
        meter = meter or Meter(event)
        meter.apply(event)
        if event.trial and event.kind in (EventKind.STARTED, EventKind.ENDED):
            {EventKind.STARTED: running.add, EventKind.ENDED: running.discard}[event.kind](event.trial.trial_id)
        found = meter.gauges(event.time)
        runs = {s.labels["trial_id"] for s in found if s.name == "kdctl_trial_running" and s.value == 1}
        assert runs == running == {s.labels["trial_id"] for s in found if s.name == "kdctl_epoch"}
        assert sum(s.value for s in found if s.name == "kdctl_trials") == len(trials)
        assert set(Counter((s.name, *s.labels.values()) for s in found).values()) == {1}
        for sample in (*found, *meter.counters()):
            assert tuple(sample.labels) == METRICS[sample.name].labels
    assert meter and not running


def test_when_the_launch_is_over_nothing_runs() -> None:
    trial = planned(0)
    meter = after(launch(trial), started(trial, 0), end(1))
    assert states(meter) == {"stopped": 1} and of(meter, trial, 2) == {"kdctl_trial_running": 0}


def test_labels_are_ascii_as_ray_requires() -> None:
    trial = planned(1, teacher=planned(0))
    labels = labels_of("tiny", trial)
    assert labels["trial"].endswith(", digits, resnet_32_8 <- resnet_32_8, seed 1")
    assert trial.title() == labels["trial"].replace("<-", "←").replace(", ", " · ")
    assert all(value.isascii() for value in labels.values())
    assert label("Übung\n") == "\\xdcbung\n"


@pytest.mark.parametrize("name", METRICS)
def test_names_follow_the_rules_of_prometheus(name: str) -> None:
    metric = METRICS[name]
    assert re.fullmatch(r"kdctl_[a-z]+(_[a-z]+)*", name)
    assert (metric.kind == "counter") == name.endswith("_total") and metric.kind in ("gauge", "counter")
    if metric.unit in ("seconds", "bytes", "percent"):
        assert name.endswith(f"_{metric.unit}")
    assert metric.meaning and not metric.meaning.endswith(".")
