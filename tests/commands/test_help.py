"""Every command's help has examples that work: each is accepted, and those that need no training run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from lines import calls, exists, understood
from workloads import SMALL_DEMO

from orchestrator.cli import cli
from orchestrator.commands.shared.layout import REST, SECTIONS, Sections
from orchestrator.errors import EXIT_CODES
from orchestrator.launch import launch
from orchestrator.storage.layout import Storage
from orchestrator.study import template


def commands(command: click.Command = cli, words: str = "kdctl") -> Iterator[tuple[str, click.Command]]:
    yield words, command
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from commands(inner, f"{words} {name}")


def examples(command: click.Command) -> list[str]:
    """The lines below `Examples:` in a command's help."""
    found = re.search(r"^ *Examples:\n((?: +\S.*\n?)+)", command.help or "", re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


EVERY = pytest.mark.parametrize("command", [pytest.param(command, id=words) for words, command in commands()])
LINES = [(words, line) for words, command in commands() for line in examples(command)]


@EVERY
def test_every_command_has_examples_of_itself(command: click.Command) -> None:
    words = next(words for words, other in commands() if other is command)
    lines = examples(command)
    assert lines and all(words in line for line in lines)


@pytest.mark.parametrize("line", [line for _, line in LINES])
def test_every_example_is_accepted(line: str) -> None:
    found = list(calls(line))
    assert found
    for words in found:
        understood(words)


@EVERY
def test_every_option_has_a_help_text(command: click.Command) -> None:
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("kdctl plan x  # what kdctl does", [["plan", "x"]]),
        ('eval "$(kdctl completion bash)"', [["completion", "bash"]]),
        ("kdctl results --json | python -m json.tool > x && kdctl plan y", [["results", "--json"], ["plan", "y"]]),
        ("kdctl launch x --set 'a=[0, 1]' >out", [["launch", "x", "--set", "a=[0, 1]"]]),
        ("make test", []),
    ],
)
def test_calls_are_found(line: str, found: list[list[str]]) -> None:
    assert list(calls(line)) == found


@pytest.mark.parametrize(
    ("line", "is_there"),
    [
        ("plan", True), ("plan x --storage y", True), ("teachers verify 00 --json", True), ("--help", True),
        ("lanch x", False), ("plan x --sett y", False), ("teachers verfy 0", False), ("results --format html", False),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_noticed(line: str, is_there: bool) -> None:
    assert exists(line.split()) is is_there


# Examples that need no training are run unchanged, in a folder as it is after a launch.

RUN = ("init", "check", "plan", "results", "teachers", "clean", "schema", "completion")
RUNNING = [line for words, line in LINES if words.split()[1:] and words.split()[1] in RUN and "verify" not in words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits_storage: Storage) -> Path:
    directory = tmp_path_factory.mktemp("examples")
    template.write(directory / "experiments.yaml", "digits")
    shutil.copytree(Path(digits_storage.backend.address, "datasets"), directory / "runs" / "datasets")
    assert launch(
        directory / "experiments.yaml", inline=True, storage=directory / "runs", settings=SMALL_DEMO
    ).is_complete
    return directory


@pytest.mark.parametrize("line", RUNNING)
def test_examples_that_need_no_training_run(line: str, folder: Path, tmp_path: Path) -> None:
    line = line.replace("/mnt/shared/runs", "runs")
    directory = folder
    if "init" in line:  # it needs an empty folder
        directory = tmp_path
    elif "--yes" in line:  # it removes something
        directory = Path(shutil.copytree(folder, tmp_path / "own"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {name: value for name, value in environment.items() if name not in ("KDCTL_STORAGE", "KDCTL_DATA")}
    done = subprocess.run(["bash", "-c", line], cwd=directory, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


# The page of all commands.


def test_the_commands_are_in_sections() -> None:
    text = cli.get_help(click.Context(cli, info_name="kdctl", terminal_width=100))
    positions = [text.index(f"\n{title}:\n") for title, _ in cli.sections()]
    assert positions == sorted(positions)
    for title, names in cli.sections():
        block = text.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert re.findall(r"^  (\S+)  ", block, re.MULTILINE) == names
    assert all(f"{code:<3}  {meaning}" in text for code, meaning in EXIT_CODES.items())


def test_a_command_that_no_section_names_is_listed_too() -> None:
    group = Sections("kdctl", commands={"plan": click.Command("plan"), "dance": click.Command("dance")})
    assert list(group.sections()) == [("Start", ["plan"]), (REST, ["dance"])]
    assert group.list_commands(click.Context(group)) == ["plan", "dance"]


def test_no_command_is_in_two_sections() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) and not set(next((n for t, n in cli.sections() if t == REST), []))
