"""`kdctl status` and `kdctl logs`: from the storage alone, of a launch elsewhere or one that is over."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from launch_events import planned, row

from orchestrator.cli import cli
from orchestrator.commands import logs as logs_command
from orchestrator.commands import status as status_command
from orchestrator.monitor.follow import Follower
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.records import EpochRecord, State
from orchestrator.results import store
from orchestrator.storage import leases, logs
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire, trial_resource
from orchestrator.study import stored_studies
from orchestrator.study.plan import Plan, PlannedTrial
from orchestrator.study.reader import Resources
from orchestrator.study.stored_studies import Launched, StoredStudy

SINCE = datetime.now(UTC) - timedelta(minutes=10)
TEACHER = planned(0)
STUDENTS = [planned(no, teacher=TEACHER) for no in range(1, 4)]
TRIALS = [TEACHER, *STUDENTS]


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
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


def remember(
    storage: Storage, trials: list[PlannedTrial] = TRIALS, name: str = "tiny", since: datetime = SINCE
) -> StoredStudy:
    plan = Plan(name, "study.yaml", tuple(trials), Resources())
    launched = Launched("launch-abc", since, "node-1", "ray", "study.yaml", "", (), "data")
    stored_studies.remember(storage, plan, launched)
    return stored_studies.find(storage, name)


def write(storage: Storage, trial: PlannedTrial, state: State, error: str | None = None, ended: bool = True) -> None:
    found = replace(row(trial, state, error), start_time=SINCE, seconds=10.0 if state is State.FINISHED else None)
    store.write_trial(storage, replace(found, end_time=SINCE + timedelta(seconds=12) if ended else None))


def epochs(storage: Storage, trial: PlannedTrial, count: int) -> None:
    records = [EpochRecord(n, 0.1, 2.0, 2.0, None, 50.0, 1.0, 50.0 + n, None, 2.0, 999.0) for n in range(1, count + 1)]
    store.write_epochs(storage, trial.trial_id, records)


def stages(board: StudyStatus) -> list[str]:
    return [str(standing.stage) for standing in board.trials.values()]


@pytest.fixture
def launched(place: Storage) -> Iterator[Storage]:
    """A launch that is under way: its teacher is finished, one student is trained, one failed."""
    remember(place)
    write(place, TEACHER, State.FINISHED)
    write(place, STUDENTS[0], State.RUNNING, ended=False)
    epochs(place, STUDENTS[0], 3)
    write(place, STUDENTS[1], State.FAILED, "it broke")
    held = [acquire(place, name) for name in ("launch-abc", trial_resource(STUDENTS[0].trial_id))]
    yield place
    for lease in held:
        assert isinstance(lease, Lease)
        lease.release()


def test_a_launch_that_runs_elsewhere(launched: Storage) -> None:
    board = Follower(launched, stored_studies.find(launched)).look()
    assert board.is_running and stages(board) == ["finished", "running", "failed", "queued"]
    running = board.trials[STUDENTS[0].trial_id]
    assert (running.epoch, running.acc, running.speed, running.measured) == (3, 53.0, 999.0, 3)
    assert running.host and board.trials[STUDENTS[1].trial_id].reason == "it broke"
    eta = board.eta(SINCE + timedelta(minutes=1))
    assert eta and eta.low == pytest.approx(22)  # two ran at a time: 10 epochs of 2 s, and what a trial takes beside


def test_only_what_changed_is_read_again(launched: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(launched, stored_studies.find(launched))
    follower.look()
    read: list[str] = []
    real = store.read_epochs

    def noted(place: Storage, ids: list[str]) -> list[dict[str, object]]:
        read.extend(ids)
        return real(place, ids)

    monkeypatch.setattr(store, "read_epochs", noted)
    monkeypatch.setattr(store, "read_trials", lambda place, ids: pytest.fail("no row has changed"))
    follower.look()
    assert read == []
    epochs(launched, STUDENTS[0], 5)
    board = follower.look()
    assert read == [STUDENTS[0].trial_id] and board.trials[STUDENTS[0].trial_id].epoch == 5


def test_a_launch_that_died_leaves_what_is_lost_and_what_never_began(folder: Storage) -> None:
    study = remember(folder)
    write(folder, TEACHER, State.RUNNING, ended=False)
    write(folder, STUDENTS[0], State.STOPPED, "stopped in epoch 3 of 10")
    write(folder, STUDENTS[1], State.SKIPPED, "its teacher failed")
    board = Follower(folder, study).look()
    assert not board.is_running and stages(board) == ["lost", "stopped", "skipped", "waiting"]
    assert board.eta(SINCE) is None


def test_an_earlier_failure_is_tried_again_by_a_launch_that_runs(folder: Storage) -> None:
    study = remember(folder, since=SINCE + timedelta(minutes=5))
    write(folder, TEACHER, State.FAILED, "an earlier one")
    lease = acquire(folder, "launch-abc")
    assert lease
    with lease:
        assert stages(Follower(folder, study).look()) == ["queued", "waiting", "waiting", "waiting"]
    assert stages(Follower(folder, study).look()) == ["failed", "waiting", "waiting", "waiting"]


def test_a_damaged_row_does_not_hide_the_others(folder: Storage) -> None:
    study = remember(folder)
    write(folder, TEACHER, State.FINISHED)
    write(folder, STUDENTS[0], State.FINISHED)
    folder.backend.write(folder.trial_row(STUDENTS[0].trial_id), b"no parquet")
    assert stages(Follower(folder, study).look()) == ["finished", "queued", "queued", "queued"]


def test_trials_that_ran_at_a_time_tell_how_many_will(folder: Storage) -> None:
    others = [planned(no) for no in range(10, 14)]
    study = remember(folder, others)
    for trial in others[:2]:
        write(folder, trial, State.FINISHED)
    lease = acquire(folder, "launch-abc")
    assert lease
    with lease:
        board = Follower(folder, study).look()
    assert board.most == 2
    eta = board.eta(SINCE)
    assert eta and eta.low == pytest.approx(12)  # two more at a time: 10 epochs of a second, and 2 seconds


# Leases as a reader sees them.


def test_a_reader_sees_who_holds_what_and_writes_nothing(folder: Storage) -> None:
    lease = acquire(folder, "launch-x")
    assert lease
    before = folder.backend.list_files("")
    with lease:
        (held,) = leases.held(folder).items()
    assert held[0] == "launch-x" and held[1].pid == os.getpid() and leases.held(folder) == {}
    assert {entry.name for entry in before} >= {lease.claim}


@pytest.mark.parametrize(("is_touched", "held"), [(True, ["trial-1"]), (False, [])])
def test_clocks_that_disagree_are_met_with_a_second_look(
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
    assert list(leases.held(folder)) == held


# The commands.


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def test_status_says_where_the_last_study_stands_and_names_the_others(folder: Storage) -> None:
    remember(folder, name="older", since=SINCE - timedelta(days=1))
    remember(folder)
    write(folder, TEACHER, State.FINISHED)
    write(folder, STUDENTS[0], State.FAILED, "it broke")
    said = run("status", "--storage", folder.backend.address)
    assert said.exit_code == 0 and "\x1b" not in said.stdout
    assert said.stdout.splitlines()[0].startswith("1/4 not running · tiny · on Ray, node-1")
    assert f"failed {STUDENTS[0].trial_id} logit seed 1: it broke" in said.stdout
    assert "also in this storage: older" in said.stderr
    assert run("status", "older", "--storage", folder.backend.address).stdout.startswith("1/4 not running · older")


def test_status_as_json(launched: Storage) -> None:
    facts = json.loads(run("status", "--storage", launched.backend.address, "--json").stdout)
    assert (facts["study"], facts["running"]) == ("tiny", True)
    assert facts["counts"] == {"running": 1, "queued": 1, "failed": 1, "finished": 1}
    assert [trial["stage"] for trial in facts["trials"]] == ["finished", "running", "failed", "queued"]
    assert facts["seconds_left"] > 0


def test_status_of_a_study_file(folder: Storage, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("study: tiny\nexperiments:\n  - {method: base, dataset: digits, student: resnet_32_8}\n")
    remember(folder)
    assert "· tiny ·" in run("status", str(file), "--storage", folder.backend.address).stdout


def test_watching_tells_what_changes_and_ends_with_the_launch(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(folder)
    lease = acquire(folder, "launch-abc")
    assert lease
    steps: list[Callable[[], None]] = [
        lambda: write(folder, TEACHER, State.FINISHED),
        lambda: None,
        lambda: write(folder, STUDENTS[0], State.FAILED, "it broke"),
        lease.release,
    ]
    monkeypatch.setattr(status_command.time, "sleep", lambda seconds: steps.pop(0)())
    said = run("status", "--watch", "--storage", folder.backend.address)
    lines = [line for line in said.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert steps == [] and [line[9:] for line in lines if TEACHER.trial_id == line[9:21] or "failed" in line] == [
        f"{TEACHER.trial_id} {TEACHER.title()}: finished, acc 61.00 %, last 60.00 %",
        f"{STUDENTS[0].trial_id} {STUDENTS[0].title()}: failed, it broke",
    ]
    assert "1/4 not running" in said.stdout


def test_watching_goes_on_with_the_launch_that_takes_over(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    study = remember(folder)
    first = Follower(folder, replace(study, launched=replace(study.launched, resource="launch-gone")))
    boards = list(status_command._boards(first, folder))
    assert len(boards) == 1 and not boards[0].is_running


def test_logs_by_the_beginning_of_an_id(folder: Storage) -> None:
    remember(folder, [replace(TEACHER, trial_id="abc000000000"), replace(TEACHER, trial_id="abd000000000")])
    logs.append(folder, "abc000000000", "one\ntwo \x1b[2J")
    address = ("--storage", folder.backend.address)
    said = run("logs", "abc", *address).stdout.splitlines()
    assert said[0].endswith(" one") and said[1] == r"    two \x1b[2J"
    assert run("logs", "abc", "--lines", "1", *address).stdout.splitlines() == said[1:]
    for words, expected in (
        (("logs", "ab"), "is the beginning of 2 trials"),
        (("logs", "abx"), "no trial 'abx'"),
        (("logs", "abd"), "has no log"),
    ):
        with pytest.raises(Exception, match=expected):
            run(*words, *address)


def test_logs_are_followed_until_the_trial_ends(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(folder)
    write(folder, TEACHER, State.RUNNING, ended=False)
    logs.append(folder, TEACHER.trial_id, "one")

    def go_on(seconds: float) -> None:
        logs.append(folder, TEACHER.trial_id, "two")
        write(folder, TEACHER, State.FINISHED)

    monkeypatch.setattr(logs_command.time, "sleep", go_on)
    said = run("logs", TEACHER.trial_id, "--follow", "--storage", folder.backend.address).stdout
    assert [line.rpartition(" ")[2] for line in said.splitlines()] == ["one", "two"]


@pytest.mark.parametrize(
    ("before", "now", "fresh"),
    [
        ([], ["a"], ["a"]), (["a"], ["a"], []), (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b", "c"], ["… 2 earlier lines were dropped", "c", "d"], ["… 2 earlier lines were dropped", "c", "d"]),
        (["a"], ["b"], ["b"]),
    ],
)  # fmt: skip
def test_what_is_fresh_in_a_log(before: list[str], now: list[str], fresh: list[str]) -> None:
    assert list(logs_command._fresh(before, now)) == fresh
