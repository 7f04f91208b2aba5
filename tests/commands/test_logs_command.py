"""`kdctl logs`: the log of a trial, whole or followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from stored_launch import TEACHER, remember, write

from orchestrator.cli import cli
from orchestrator.commands import logs as command
from orchestrator.records import State
from orchestrator.storage import logs
from orchestrator.storage.layout import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    found = Storage.at(tmp_path / "runs")
    found.prepare()
    return found


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def test_logs_by_the_beginning_of_an_id(folder: Storage) -> None:
    remember(folder, [replace(TEACHER, trial_id="abc000000000"), replace(TEACHER, trial_id="abd000000000")])
    logs.append(folder, "abc000000000", "one\ntwo \x1b[2J")
    address = ("--storage", folder.backend.address)
    output = run("logs", "abc", *address).stdout.splitlines()
    assert output[0].endswith(" one") and output[1] == r"    two \x1b[2J"
    assert run("logs", "abc", "--lines", "1", *address).stdout.splitlines() == output[1:]
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

    def finish(seconds: float) -> None:
        logs.append(folder, TEACHER.trial_id, "two")
        write(folder, TEACHER, State.FINISHED)

    monkeypatch.setattr(command.time, "sleep", finish)
    output = run("logs", TEACHER.trial_id, "--follow", "--storage", folder.backend.address).stdout
    assert [line.rpartition(" ")[2] for line in output.splitlines()] == ["one", "two"]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([], ["a"], ["a"]), (["a"], ["a"], []), (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b", "c"], ["… 2 earlier lines were dropped", "c", "d"], ["… 2 earlier lines were dropped", "c", "d"]),
        (["a"], ["b"], ["b"]),
    ],
)  # fmt: skip
def test_the_new_lines_of_a_log(before: list[str], now: list[str], expected: list[str]) -> None:
    assert list(command._new_lines(before, now)) == expected
