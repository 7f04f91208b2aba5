"""Events as JSON: flat, plain, with names as in the results, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import pytest

from orchestrator.execution.job import Job
from orchestrator.monitor import events
from orchestrator.monitor.events import Event, EventKind, TrialStarted
from orchestrator.records import EpochRecord, State, TrialConfig
from orchestrator.results.store import EPOCH_COLUMNS, TRIAL_COLUMNS
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.stored_studies import Member


@pytest.fixture
def trial(make_config: Callable[..., TrialConfig]) -> PlannedTrial:
    return PlannedTrial("0123456789ab", "student", make_config(), None, "new", None, None)


def plain(event: Event) -> dict[str, object]:
    """The event, as parsed from its JSON."""
    data: dict[str, object] = json.loads(json.dumps(event.to_json(), allow_nan=False))
    assert datetime.fromisoformat(str(data["time"])).tzinfo
    return data


def test_a_launch_has_the_number_of_its_trials() -> None:
    members = tuple(Member(f"{no:012x}", "student", "", None, 1, None, no < 2) for no in range(5))
    data = plain(Event(EventKind.LAUNCH, "begins", facts=events.LaunchStarted("s", "inline", members)))
    assert (data["event"], data["study"], data["trials"], data["cached"]) == ("launch", "s", 5, 2)


def test_an_epoch_and_an_end_have_the_columns_of_the_results(trial: PlannedTrial) -> None:
    record = EpochRecord(3, 0.1, 2.0, 2.0, None, 50.0, 1.0, 12.345, None, 1.0, 12345.6)
    epoch = plain(Event(EventKind.EPOCH, "", trial, record))
    assert set(EPOCH_COLUMNS) <= set(epoch) and epoch["test_acc"] == 12.345 and epoch["title"] == trial.title()
    row = Job(trial, 1, "study", "nowhere", 1, None, None, None).row(State.FAILED, "the reason")
    end = plain(Event(EventKind.ENDED, "", trial, row, ("last line",), "runs/logs/0123456789ab.log"))
    assert set(TRIAL_COLUMNS) <= set(end) and end["state"] == "failed" and end["log"] == ["last line"]


def test_a_start_and_the_outcome(trial: PlannedTrial) -> None:
    begun = plain(Event(EventKind.STARTED, "", trial, TrialStarted("h", 7, "cpu, 1 threads", 3, "table", True)))
    assert (begun["host"], begun["device"], begun["epoch"], begun["is_hit"]) == ("h", "cpu, 1 threads", 3, True)
    outcome = plain(Event(EventKind.END, "", facts=events.LaunchTotals({State.FINISHED: 2}, 1.5)))
    assert (outcome["states"], outcome["seconds"]) == ({"finished": 2}, 1.5)


def test_no_secret_is_in_an_event(trial: PlannedTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "verysecret")
    row = Job(trial, 1, "verysecret", "nowhere", 1, None, None, None).row(State.FAILED, "verysecret")
    text = json.dumps(Event(EventKind.ENDED, "verysecret", trial, row, ("verysecret",), "verysecret").to_json())
    assert "verysecret" not in text and "***" in text
