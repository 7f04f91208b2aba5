"""Colours on a terminal, and none in a pipe, with NO_COLOR, or on a terminal without colours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from terminal import Terminal

from orchestrator.commands.shared import colours
from orchestrator.doctor import CheckLevel, CheckResult, text

KDCTL = str(Path(sys.executable).with_name("kdctl"))


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    return {**kept, "TERM": "xterm", **changes}


def run_in_terminal(folder: Path, *words: str, **changes: str) -> str:
    with Terminal([KDCTL, *words], folder, environment(**changes)) as terminal:
        pass
    return terminal.output


@pytest.mark.parametrize(
    ("changes", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_colours_unless_they_are_turned_off(
    tmp_path: Path, changes: dict[str, str], is_coloured: bool
) -> None:
    output = run_in_terminal(tmp_path, "check", "nowhere.yaml", "--sett", **changes)
    assert "Did you mean '--set'?" in output and ("\x1b[" in output) is is_coloured


def test_a_pipe_has_no_colours(tmp_path: Path) -> None:
    command = [KDCTL, "check", "nowhere.yaml", "--sett"]
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert "Did you mean '--set'?" in piped.stderr and "\x1b" not in piped.stdout + piped.stderr


def test_the_doctor_is_coloured_on_a_terminal(tmp_path: Path) -> None:
    assert "\x1b[32mok\x1b[0m" in run_in_terminal(tmp_path, "doctor", "--storage", "runs")


def test_a_result_of_the_doctor_has_the_colour_of_its_level() -> None:
    found = [
        CheckResult("a", CheckLevel.OK, "ok"),
        CheckResult("b", CheckLevel.WARNING, "x", "y"),
        CheckResult("c", CheckLevel.BAD, "bad"),
    ]
    plain = text(found)
    output = colours.check_levels(plain)
    assert click.unstyle(output) == plain
    starts = [line.split("m")[0][2:] for line in output.splitlines() if line.startswith("\x1b[")]
    assert starts == ["32", "33", "31"] and output.count("\x1b[0m") == 3


def test_states_are_coloured_in_their_columns() -> None:
    plain = "0123456789ab  teacher  failed  x  unfinished\nfinished or not\n0123456789ab seed 3 failed: it failed"
    output = colours.states(plain)
    assert click.unstyle(output) == plain
    assert output.splitlines()[0].endswith("failed  x  \x1b[33munfinished\x1b[0m")
    assert output.splitlines()[1] == "finished or not"
    assert output.splitlines()[2] == "0123456789ab seed 3 \x1b[31mfailed\x1b[0m: it failed"
