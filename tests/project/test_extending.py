"""docs/extending.md, from its first line to its last: files are written, commands run, and what they print is shown."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.results import store
from orchestrator.storage.layout import Storage

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
KDCTL = f"{shlex.quote(sys.executable)} -m orchestrator.cli"
FAILING = "kdctl check wrong.yaml"


@dataclass(frozen=True)
class Line:
    """A line of shell, with what the page shows of its output, and what it printed."""

    line: str
    shown: str
    code: int
    printed: str


def read_blocks() -> Iterator[tuple[str, str]]:
    """The kind and the text of each block of code."""
    yield from re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits_storage: Storage) -> Path:
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(Path(digits_storage.backend.address, "datasets"), place / "runs" / "datasets")
    return place


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[Line]:
    """The lines of shell, each run after everything above it on the page."""
    found: list[Line] = []
    for kind, text in read_blocks():
        if kind == "text":
            found[-1] = Line(found[-1].line, text, found[-1].code, found[-1].printed)
        elif kind == "sh":
            found += [run(line, folder) for line in text.splitlines()]
        else:
            name = text.splitlines()[0].removeprefix("# ")
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    return found


def run(line: str, folder: Path) -> Line:
    """Runs a line in the folder: a command that trains nothing in this process, which has loaded torch."""
    words = shlex.split(line, comments=True)
    if words[0] == "kdctl" and words[1] != "launch":
        return run_here(line, words, folder)
    called = re.sub(r"^kdctl", KDCTL, line)
    done = subprocess.run(["bash", "-c", called], cwd=folder, capture_output=True, text=True, timeout=240)
    return Line(line, "", done.returncode, done.stdout + done.stderr)


def run_here(line: str, words: list[str], folder: Path) -> Line:
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
    return Line(line, "", int(ended.value.code or 0), printed.getvalue())


def test_every_line_runs(lines: list[Line]) -> None:
    assert len(lines) > 8
    for line in lines:
        assert line.code == (2 if line.line == FAILING else 0), f"{line.line}\n{line.printed}"


def test_what_the_page_shows_is_what_is_printed(lines: list[Line]) -> None:
    shown = [line for line in lines if line.shown]
    assert len(shown) == 2
    for line in shown:
        assert " ".join(line.shown.split()) in " ".join(line.printed.split()), line.printed


def test_the_plans_have_as_many_trials_as_the_page_says(lines: list[Line]) -> None:
    (plan,) = [line.printed for line in lines if line.line == "kdctl plan options.yaml"]
    assert "4 trials of study options: 4 new" in plan, "three students and their teacher"


def test_the_loss_was_trained(lines: list[Line], folder: Path) -> None:
    rows = store.read_trials(Storage.at(folder / "runs"))
    assert sorted(row.method for row in rows) == ["base", "base", "base", "my_loss:probabilities", "st"]
    (own,) = [row for row in rows if row.dataset.startswith("my_data-stripes-")]
    assert own.acc > 60, "rows and columns are told apart"


def test_every_file_is_named_in_its_first_line() -> None:
    files = [text.splitlines()[0] for kind, text in read_blocks() if kind in ("python", "yaml")]
    assert len(files) > 8 and all(re.fullmatch(r"# [\w/]+\.(py|yaml)", line) for line in files)
