"""Progress: one line for each event on standard error; trials that the storage already holds count."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.execution.job import Job
from orchestrator.monitor import events
from orchestrator.monitor.events import Event, EventKind
from orchestrator.monitor.sinks import Lines, event_sink, is_terminal
from orchestrator.records import EpochRecord, State, TrialConfig
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.stored_studies import Member


@pytest.fixture
def job(make_config: Callable[..., TrialConfig]) -> Job:
    """A job of 100 epochs."""
    trial = PlannedTrial("0123456789ab", "student", make_config(epochs=100), None, "new", None, None)
    return Job(trial, 1, "study", "nowhere", 1, None, None, None)


def epoch(job: Job, number: int) -> Event:
    record = EpochRecord(number, 0.1, 2.0, 2.0, None, 50.0, 1.0, 12.345, None, 1.0, 12345.6)
    return Event(EventKind.EPOCH, f"epoch {number}/100", job.trial, record)


def launch(trials: int, cached: int) -> Event:
    members = tuple(Member(f"{no:012x}", "student", "", None, 1, None, no < cached) for no in range(trials))
    return Event(EventKind.LAUNCH, f"{trials} trials", facts=events.LaunchStarted("study", "inline", members))


def ended(job: Job, state: State, text: str, log: tuple[str, ...] = ()) -> Event:
    return Event(EventKind.ENDED, text, job.trial, job.row(state), log, "logs/0123456789ab.log" if log else None)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error without their times; nothing is on standard output, which is for data."""
    out, err = capsys.readouterr()
    assert out == ""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in err.splitlines()]


def test_short_epochs_do_not_flood_a_log(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    on_event = Lines()
    for number in range(1, 101):
        on_event(epoch(job, number))
        now += 0.1
    printed = [int(re.findall(r"epoch (\d+)/", line)[0]) for line in lines(capsys)]
    assert printed[0] == 1 and printed[-1] == 100  # the last one always
    assert 4 <= len(printed) <= 7  # ten seconds, a line every two


def test_two_trials_do_not_silence_each_other(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(job, trial=replace(job.trial, trial_id="ba9876543210"))
    on_event = Lines()
    on_event(epoch(job, 1))
    on_event(epoch(other, 1))
    assert [line[:12] for line in lines(capsys)] == ["0123456789ab", "ba9876543210"]


def test_the_end_of_a_trial_is_counted_and_a_failure_shows_its_log(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    on_event = Lines()
    on_event(launch(5, 2))
    on_event(ended(job, State.STOPPED, "stopped in epoch 3"))  # it has not ended: the next launch resumes it
    on_event(ended(job, State.FINISHED, "finished"))
    on_event(ended(job, State.FAILED, "failed: the reason", ("one", "two")))
    title = f"0123456789ab {job.trial.title()}"
    assert lines(capsys) == [
        "5 trials",
        f"{title}: stopped in epoch 3",
        f"[3/5] {title}: finished",
        f"[4/5] {title}: failed: the reason",
        "    one",
        "    two",
        "    its log: logs/0123456789ab.log",
    ]


class Closed:
    """A standard error stream whose reader has closed it."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_closed_reader_is_no_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Closed())
    Lines()(epoch(job, 1))


@pytest.mark.parametrize("as_json", [False, True])
def test_any_reader_may_close_the_stream(job: Job, monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with event_sink(as_json=as_json) as on_event:
        on_event(epoch(job, 1))


def test_json_is_an_object_an_event_on_standard_output(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with event_sink(as_json=True) as on_event:
        for event in (launch(5, 2), epoch(job, 1), epoch(job, 2), ended(job, State.FAILED, "failed: \x1b", ("one",))):
            on_event(event)
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert err == "" and [fact["event"] for fact in found] == ["launch", "epoch", "epoch", "ended"]
    assert (found[0]["trials"], found[0]["cached"]) == (5, 2)
    assert (found[2]["trial_id"], found[2]["epoch"], found[2]["test_acc"]) == ("0123456789ab", 2, 12.345)
    assert (found[3]["state"], found[3]["log"]) == ("failed", ["one"]) and "\x1b" not in out


def test_quiet_prints_failures_and_retries(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with event_sink(quiet=True) as on_event:
        for event in (
            launch(2, 0), epoch(job, 1), ended(job, State.FINISHED, "finished"),
            Event(EventKind.NOTE, "no GPU is used"),
            Event(EventKind.RETRY, "its worker was lost", job.trial), ended(job, State.FAILED, "failed: it broke"),
        ):  # fmt: skip
            on_event(event)
    name = f"0123456789ab {job.trial.title()}"
    assert lines(capsys) == [f"{name}: its worker was lost", f"[2/2] {name}: failed: it broke"]


def test_control_characters_are_shown_as_text(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Lines()(Event(EventKind.NOTICE, "red \x1b[31m and\nanother line", job.trial))
    assert lines(capsys)[0].endswith(r": red \x1b[31m and\nanother line")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_capable_terminal_gets_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Terminal()) and not is_terminal(io.StringIO()) and not is_terminal(None)
    for name in ("dumb", ""):
        monkeypatch.setenv("TERM", name)
        assert not is_terminal(Terminal())


def test_a_terminal_gets_a_live_view(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    with event_sink() as on_event:
        for event in (Event(EventKind.NOTE, "before it begins"), launch(5, 2), Event(EventKind.NOTE, "no GPU is used")):
            on_event(event)
    text = stream.getvalue()
    assert "before it begins" in text and "no GPU is used" in text and text.endswith("\n")


def test_json_stays_json_whatever_is_masked(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    record = EpochRecord(1, 0.1, 2.0, 2.0, None, 50.0, float("nan"), 12.3, None, 1.0, 10.0)
    with event_sink(as_json=True) as on_event:
        on_event(
            Event(EventKind.NOTE, "see https://bucket/key?X-Amz-Signature=abcdefgh", log=("last",), log_name="a.log")
        )
        on_event(Event(EventKind.EPOCH, "", job.trial, record))
    note, epoch_ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert note["text"] == "see https://bucket/key?X-Amz-Signature=***" and note["log"] == ["last"]
    assert epoch_["test_loss"] is None and epoch_["test_acc"] == 12.3
