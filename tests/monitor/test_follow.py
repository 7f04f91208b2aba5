"""The status of a study from its storage alone: of a launch on another machine, or one that has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from launch_events import ended, epoch, launch, planned, started, status_after
from stored_launch import SINCE, STUDENTS, TEACHER, TRIALS, epochs, remember, running_launch, stages, write

from orchestrator.monitor.eta import estimate
from orchestrator.monitor.follow import Follower, follow
from orchestrator.records import State
from orchestrator.results import store
from orchestrator.storage import leases
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire
from orchestrator.study import stored_studies


@pytest.fixture(params=["folder", "bucket"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A storage of each kind."""
    address = str(tmp_path / "runs") if request.param == "folder" else request.getfixturevalue("s3_address")
    found = Storage.at(address)
    found.prepare()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    found = Storage.at(tmp_path / "runs")
    found.prepare()
    return found


@pytest.fixture
def launched(backend: Storage) -> Iterator[Storage]:
    with running_launch(backend):
        yield backend


def test_a_launch_on_another_machine(launched: Storage) -> None:
    status = Follower(launched, stored_studies.find(launched)).read_status()
    assert status.is_running and stages(status) == ["finished", "running", "failed", "queued"]
    running = status.trials[STUDENTS[0].trial_id]
    found = running.progress
    assert (found.epoch, found.acc, found.speed, found.measured) == (3, 53.0, 999.0, 3)
    assert running.host and status.trials[STUDENTS[1].trial_id].reason == "it broke"
    eta = estimate(status, SINCE + timedelta(minutes=1))
    assert eta and eta.low == pytest.approx(22)  # two ran at the same time: 10 epochs of 2 s, and 2 s of overhead


def test_only_what_changed_is_read_again(launched: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(launched, stored_studies.find(launched))
    follower.read_status()
    read: list[str] = []
    real = store.read_epochs

    def noted(backend: Storage, ids: list[str]) -> list[dict[str, object]]:
        read.extend(ids)
        return real(backend, ids)

    monkeypatch.setattr(store, "read_epochs", noted)
    monkeypatch.setattr(store, "read_trials", lambda backend, ids: pytest.fail("no row has changed"))
    follower.read_status()
    assert read == []
    epochs(launched, STUDENTS[0], 5)
    status = follower.read_status()
    assert read == [STUDENTS[0].trial_id] and status.trials[STUDENTS[0].trial_id].progress.epoch == 5


def test_a_killed_launch_leaves_trials_lost_or_not_started(folder: Storage) -> None:
    study = remember(folder)
    write(folder, TEACHER, State.RUNNING, ended=False)
    write(folder, STUDENTS[0], State.STOPPED, "stopped in epoch 3 of 10")
    write(folder, STUDENTS[1], State.SKIPPED, "its teacher failed")
    status = Follower(folder, study).read_status()
    assert not status.is_running and stages(status) == ["lost", "stopped", "skipped", "waiting"]
    assert estimate(status, SINCE) is None


def test_an_earlier_failure_is_tried_again_by_a_launch_that_runs(folder: Storage) -> None:
    study = remember(folder, since=SINCE + timedelta(minutes=5))
    write(folder, TEACHER, State.FAILED, "an earlier one")
    lease = acquire(folder, "launch-abc")
    assert lease
    with lease:
        assert stages(Follower(folder, study).read_status()) == ["queued", "waiting", "waiting", "waiting"]
    assert stages(Follower(folder, study).read_status()) == ["failed", "waiting", "waiting", "waiting"]


def test_a_damaged_row_does_not_hide_the_others(folder: Storage) -> None:
    study = remember(folder)
    write(folder, TEACHER, State.FINISHED)
    write(folder, STUDENTS[0], State.FINISHED)
    folder.backend.write(folder.trial_row(STUDENTS[0].trial_id), b"no parquet")
    assert stages(Follower(folder, study).read_status()) == ["finished", "queued", "queued", "queued"]


def test_the_number_of_trials_that_ran_at_the_same_time_predicts_how_many_will(folder: Storage) -> None:
    others = [planned(no) for no in range(10, 14)]
    study = remember(folder, others)
    for trial in others[:2]:
        write(folder, trial, State.FINISHED)
    lease = acquire(folder, "launch-abc")
    assert lease
    with lease:
        status = Follower(folder, study).read_status()
    assert status.most_running == 2
    eta = estimate(status, SINCE)
    assert eta and eta.low == pytest.approx(12)  # two more at the same time: 10 epochs of a second, and 2 s of overhead


# Leases as a reader sees them.


def test_a_reader_finds_holders_and_writes_nothing(folder: Storage) -> None:
    lease = acquire(folder, "launch-x")
    assert lease
    before = folder.backend.list_files("")
    with lease:
        (held,) = leases.list_holders(folder).items()
    assert held[0] == "launch-x" and held[1].pid == os.getpid() and leases.list_holders(folder) == {}
    assert {entry.name for entry in before} >= {lease.claim}


@pytest.mark.parametrize(("is_touched", "held"), [(True, ["trial-1"]), (False, [])])
def test_disagreeing_clocks_are_detected_by_a_second_read(
    folder: Storage, monkeypatch: pytest.MonkeyPatch, is_touched: bool, held: list[str]
) -> None:
    facts = {"host": "far", "machine": "another", "pid": 1, "started": "1", "owner": "o", "follows": None}
    name = folder.claim("trial-1", "o")
    folder.backend.write(name, json.dumps(facts).encode())
    os.utime(folder.backend.local_path(name), (1000, 1000))

    def wait(seconds: float) -> None:
        assert seconds > 2 * leases.BEAT
        if is_touched:
            os.utime(folder.backend.local_path(name), (1002, 1002))

    monkeypatch.setattr("time.sleep", wait)
    assert list(leases.list_holders(folder)) == held


# One way to change a status.


def test_events_and_files_of_the_same_launch_give_the_same_status(folder: Storage) -> None:
    with running_launch(folder):
        read = Follower(folder, stored_studies.find(folder)).read_status()
    facts = [
        started(TEACHER, 0), ended(TEACHER, 12), started(STUDENTS[0], 12),
        *(epoch(STUDENTS[0], n, 12) for n in (1, 2, 3)),
        ended(STUDENTS[1], 13, State.FAILED, "it broke"),
    ]  # fmt: skip
    from_events = status_after(launch(*TRIALS), *facts)
    assert stages(read) == stages(from_events) and read.share_done() == from_events.share_done()
    for one, other in zip(read.trials.values(), from_events.trials.values(), strict=True):
        found, expected = one.progress, other.progress
        assert (found.epoch, found.acc, found.last) == (expected.epoch, expected.acc, expected.last)
        assert one.reason == other.reason


def test_the_launch_that_follows_on_another_is_followed_too(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    study = remember(folder)
    first = Follower(folder, replace(study, launched=replace(study.launched, resource="launch-gone")))
    statuses = list(follow(first, folder))
    assert len(statuses) == 1 and not statuses[0].is_running
