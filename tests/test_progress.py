"""Progress: one line an event on standard error, counted from what the storage already holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.plan import PlannedTrial
from orchestrator.progress import Progress
from orchestrator.records import EpochRecord, State, TrialConfig, TrialRecord
from orchestrator.trial import Job


@pytest.fixture
def job(make_config: Callable[..., TrialConfig]) -> Job:
    """A job of 100 epochs."""
    trial = PlannedTrial("0123456789ab", "student", make_config(epochs=100), None, "new", None, None)
    return Job(trial, 1, "study", "nowhere", 1, None, None, None)


def epoch(number: int) -> EpochRecord:
    return EpochRecord(number, 0.1, 2.0, 2.0, None, 50.0, 1.0, 12.345, None, 1.0, 12345.6)


def finished(job: Job) -> TrialRecord:
    return replace(job.row(State.FINISHED), acc=50.0, epoch=3, last_acc=49.5)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What stands on standard error after the time of day; nothing is on standard output, which is for data."""
    out, err = capsys.readouterr()
    assert out == ""
    found = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line) for line in err.splitlines()]
    assert all(found)
    return [match[1] for match in found if match]


def test_an_epoch_says_how_good_and_how_fast(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Progress(1, 0).watch(job, epoch(1))
    expected = "0123456789ab base digits resnet_32_8 seed 0: epoch 1/100, acc 12.35 %, 12,346 images/s"
    assert lines(capsys) == [expected.replace("12.35", f"{12.345:.2f}")]


def test_short_epochs_do_not_flood_a_log(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(1, 0)
    for number in range(1, 101):
        progress.watch(job, epoch(number))
        now += 0.1
    shown = [int(re.findall(r"epoch (\d+)/", line)[0]) for line in lines(capsys)]
    assert shown[0] == 1 and shown[-1] == 100  # the last one always
    assert 4 <= len(shown) <= 7  # ten seconds, a line every two


def test_two_trials_do_not_silence_each_other(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(job, trial=replace(job.trial, trial_id="ba9876543210"))
    progress = Progress(2, 0)
    progress.watch(job, epoch(1))
    progress.watch(other, epoch(1))
    assert [line[:12] for line in lines(capsys)] == ["0123456789ab", "ba9876543210"]


def test_the_end_of_a_trial_is_counted(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(5, 2)
    progress.watch(job, finished(job))
    progress.watch(job, replace(finished(job), epoch=None))  # a teacher from a file was not trained
    progress.watch(job, job.row(State.FAILED, "the reason"))
    title = "0123456789ab base digits resnet_32_8 seed 0"
    assert lines(capsys) == [
        "2 of 5 trials are finished in this storage and not trained again",
        f"[3/5] {title}: finished, best acc 50.00 % in epoch 3, last 49.50 %",
        f"[4/5] {title}: finished, acc 50.00 %, last 49.50 %",
        f"[5/5] {title}: failed: the reason",
    ]


def test_a_trial_that_stopped_has_not_ended(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2, 0)
    progress.watch(job, job.row(State.STOPPED, "stopped in epoch 3 of 100; the same command goes on from there"))
    progress.watch(job, finished(job))
    first, second = lines(capsys)
    title = "0123456789ab base digits resnet_32_8 seed 0"
    assert first == f"{title}: stopped in epoch 3 of 100; the same command goes on from there"
    assert second.startswith(f"[1/2] {title}: finished")


def test_quiet_is_quiet(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2, 1, quiet=True)
    progress.watch(job, epoch(1))
    progress.watch(job, finished(job))
    assert lines(capsys) == []


class Closed:
    """Standard error whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_reader_that_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Closed())
    Progress(1, 0).say("nobody hears this")
