"""`kdctl status`: from the storage alone, once or until the launch ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stored_launch import SINCE, STUDENTS, TEACHER, remember, running_launch, write

from orchestrator.cli import cli
from orchestrator.commands import status
from orchestrator.records import State
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    found = Storage.at(tmp_path / "runs")
    found.prepare()
    return found


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def test_status_shows_the_last_study_and_names_the_others(folder: Storage) -> None:
    remember(folder, name="older", since=SINCE - timedelta(days=1))
    remember(folder)
    write(folder, TEACHER, State.FINISHED)
    write(folder, STUDENTS[0], State.FAILED, "it broke")
    result = run("status", "--storage", folder.backend.address)
    assert result.exit_code == 0 and "\x1b" not in result.stdout
    assert result.stdout.splitlines()[0].startswith("1/4 not running · tiny · on Ray, node-1")
    assert f"failed {STUDENTS[0].trial_id} logit seed 1: it broke" in result.stdout
    assert "also in this storage: older" in result.stderr
    assert run("status", "older", "--storage", folder.backend.address).stdout.startswith("1/4 not running · older")


def test_status_as_json(folder: Storage) -> None:
    with running_launch(folder):
        facts = json.loads(run("status", "--storage", folder.backend.address, "--json").stdout)
    assert (facts["study"], facts["running"]) == ("tiny", True)
    assert facts["counts"] == {"running": 1, "queued": 1, "failed": 1, "finished": 1}
    assert [trial["stage"] for trial in facts["trials"]] == ["finished", "running", "failed", "queued"]
    assert facts["seconds_left"] > 0


def test_status_of_a_study_file(folder: Storage, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("study: tiny\nexperiments:\n  - {method: base, dataset: digits, student: resnet_32_8}\n")
    remember(folder)
    assert "· tiny ·" in run("status", str(file), "--storage", folder.backend.address).stdout


def test_watching_prints_changes_and_ends_with_the_launch(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(folder)
    lease = acquire(folder, "launch-abc")
    assert lease
    steps: list[Callable[[], None]] = [
        lambda: write(folder, TEACHER, State.FINISHED),
        lambda: None,
        lambda: write(folder, STUDENTS[0], State.FAILED, "it broke"),
        lease.release,
    ]
    monkeypatch.setattr(status.time, "sleep", lambda seconds: steps.pop(0)())
    result = run("status", "--watch", "--storage", folder.backend.address)
    lines = [line for line in result.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert steps == [] and [line[9:] for line in lines if TEACHER.trial_id == line[9:21] or "failed" in line] == [
        f"{TEACHER.trial_id} {TEACHER.title()}: finished, acc 61.00 %, last 60.00 %",
        f"{STUDENTS[0].trial_id} {STUDENTS[0].title()}: failed, it broke",
    ]
    assert "1/4 not running" in result.stdout
