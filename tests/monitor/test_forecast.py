"""How long a plan takes on this machine, in closed forms: counted operations over measured speed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from launch_events import at, planned, row

from orchestrator import models
from orchestrator.data.registry import DATASETS
from orchestrator.monitor.eta import Eta
from orchestrator.monitor.forecast import estimate_plan, predict_time
from orchestrator.records import State, TableKey, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import BUILD_COST, Plan, PlannedTrial, PlanState
from orchestrator.study.reader import Resources

TRAIN, TEST = 128, 100  # images of a trial


def plan(*trials: PlannedTrial) -> Plan:
    return Plan("s", "s.yaml", trials, Resources())


def finished(trial: PlannedTrial, seconds: float, **overrides: Any) -> TrialRecord:
    """The row of a trial that took so many seconds on this machine."""
    found = row(trial, State.FINISHED)
    recipe = {**found.recipe, "teacher_answers": trial.teacher_cache}
    made = {"host": "here", "device": "cpu, 1 threads", "seconds": seconds, "end_time": at(9), "recipe": recipe}
    return replace(found, **{**made, **overrides})


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.monitor.forecast.socket.gethostname", lambda: "here")


def close(low: float, high: float | None) -> Eta:
    return Eta(pytest.approx(low), None if high is None else pytest.approx(high))


def test_the_same_work_takes_the_same_time_per_epoch() -> None:
    done = planned(0, epochs=10)
    left = [planned(1, epochs=20), planned(2, epochs=5)]
    assert estimate_plan(plan(done, *left), [finished(done, 4.0)], ()) == close(4 + 8 + 2, 4 + 8 + 2)
    over = replace(done, state=PlanState.FINISHED)
    assert estimate_plan(plan(over, *left), [finished(done, 4.0)], ()) == close(8 + 2, 8 + 2)


def test_more_images_take_longer() -> None:
    done = planned(0, epochs=10)
    config = done.config
    assert (config.limit_train, config.limit_test) == (TRAIN, TEST)
    more = replace(planned(1, epochs=10), config=replace(config, seed=1, limit_train=2 * TRAIN))
    expected = 4.0 * (3 * 2 * TRAIN + TEST) / (3 * TRAIN + TEST)
    assert estimate_plan(plan(more), [finished(done, 4.0)], ()) == close(expected, expected)


def test_another_model_is_a_rough_guide_and_its_own_method_a_better_one() -> None:
    small, large = planned(0), planned(1, depth=80)
    image = 10, DATASETS["digits"].side
    times = models.multiply_adds("resnet_32_80", *image) / models.multiply_adds("resnet_32_8", *image)
    assert estimate_plan(plan(large), [finished(small, 4.0)], ()) == close(4 * times / 2, 4 * times * 2)
    student = replace(planned(2, teacher=small), teacher_cache="table")
    rows = [finished(small, 4.0), finished(large, 1000.0)]
    assert estimate_plan(plan(student), rows, ()) == close(4 / 2, 4 * 2), "that of its model, not of both"


def test_a_live_teacher_costs_a_third_of_training_it() -> None:
    teacher = planned(0)
    student = replace(planned(1, teacher=teacher), teacher_cache="live")
    times = (4 * TRAIN + TEST) / (3 * TRAIN + TEST)
    found = estimate_plan(plan(student), [finished(teacher, 4.0)], ())
    assert found == close(4 * times / 2, 4 * times * 2)


def test_a_table_counts_until_it_is_there() -> None:
    teacher = replace(planned(0), state=PlanState.FINISHED)
    key = TableKey(teacher.trial_id, "logits", 4, True, TRAIN)
    students = [replace(planned(no, teacher=teacher), table=key) for no in (1, 2)]
    rows = [finished(teacher, 4.0), finished(students[0], 4.0)]
    assert estimate_plan(plan(teacher, *students), rows, [key]) == close(8, 8)
    table = 4.0 * BUILD_COST * key.views * TRAIN / (10 * (3 * TRAIN + TEST))
    found = estimate_plan(plan(teacher, *students), rows, [])
    assert found == close(8 + table / 2, 8 + table * 2), "once for both"


def test_models_with_unknown_operations_leave_the_time_open() -> None:
    known, unknown = planned(0), planned(1)
    unknown = replace(unknown, config=replace(unknown.config, student="my_net.py:build"))
    assert estimate_plan(plan(unknown), [finished(known, 4.0)], ()) == Eta(0, None)
    assert estimate_plan(plan(unknown, known), [finished(known, 4.0)], ()) == close(4, None)
    assert estimate_plan(plan(unknown), [finished(unknown, 4.0)], ()) == close(4, 4)
    assert estimate_plan(plan(known), [finished(unknown, 4.0)], ()) == Eta(0, None)


def test_only_this_machine_and_its_last_device_count(storage: Storage) -> None:
    trials = [planned(no) for no in range(5)]
    study = plan(planned(9))
    assert predict_time(study, storage) == "time on this machine: unknown until a trial has finished here"
    store.write_trial(storage, finished(trials[0], 4.0, host="elsewhere"))
    store.write_trial(storage, row(trials[1], State.FAILED, "no"))
    assert "unknown until" in predict_time(study, storage)
    store.write_trial(storage, finished(trials[2], 400.0))
    assert predict_time(study, storage) == (
        "one trial after the other on cpu, 1 threads: about 7 min, at the speed of 1 finished trial"
    )
    store.write_trial(storage, finished(trials[3], 4.0, device="GPU", end_time=at(9) + timedelta(1)))
    store.write_trial(storage, finished(trials[4], 6.0, device="GPU", end_time=at(9) + timedelta(2)))
    last = "one trial after the other on GPU: about 5 s, at the speed of 2 finished trials"
    assert predict_time(study, storage) == last
    storage.backend.write(storage.trial_row("0" * 12), b"damaged")
    assert predict_time(study, storage) == last
    assert predict_time(plan(replace(trials[0], state=PlanState.FINISHED)), storage) == ""


def test_a_dataset_of_another_version_is_no_guide() -> None:
    assert estimate_plan(plan(planned(1)), [finished(planned(0), 4.0, dataset="cifar1000")], ()) == Eta(0, None)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys, orchestrator.monitor.forecast; print('torch' in sys.modules, 'ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False"]
