"""The docs say what the program says: printed tables, links, study files, and every line of code in the README."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from launch_events import ignore
from lines import calls, exists, understood
from workloads import SMALL_DEMO

from orchestrator.launch import launch
from orchestrator.storage.layout import Storage
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study
from orchestrator.study.schema import schema_text

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
ALL = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
PAGES = pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
QUERIES = re.findall(r"^(?:echo .*)?kdctl query .*$", (ROOT / "docs" / "columns.md").read_text(), re.MULTILINE)


def load_printer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("printed", ROOT / "docs" / "printed.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRINTER = load_printer()


@pytest.mark.parametrize("page", PRINTER.PAGES)
def test_a_page_holds_what_the_program_prints(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- printed: " in text
    assert text == PRINTER.printed(text), "run `make docs`"


def test_a_stale_block_is_noticed() -> None:
    stale = "<!-- printed: methods -->\nold\n<!-- end -->"
    assert "old" not in PRINTER.printed(stale)


def test_the_schema_is_the_printed_one() -> None:
    assert (ROOT / PRINTER.SCHEMA).read_text() == schema_text(), "run `make docs`"


@PAGES
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_study_in_the_docs_is_good(tmp_path: Path) -> None:
    studies = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert studies
    for text in studies:
        (tmp_path / "study.yaml").write_text(text)
        assert load_study(tmp_path / "study.yaml").experiments


@pytest.mark.parametrize(
    ("file", "trials"),
    [
        ("experiments.yaml", 16),
        ("examples/digits.yaml", 16),
        ("examples/cifar_small.yaml", 7),
        ("examples/crd.yaml", 1171),
    ],
)
def test_the_study_files_expand_as_the_docs_say(file: str, trials: int) -> None:
    study = load_study(ROOT / file)
    assert study.warnings == ()
    assert len(make_plan(study).trials) == trials


@pytest.mark.parametrize("line", SHELL)
def test_every_line_of_shell_in_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert is_target(words[1])
    elif words[0] == "source":
        assert words[1] == ".venv/bin/activate"  # which `make` makes
    elif words[0] == "uv":
        assert words[1:] == ["venv", "&&", "uv", "pip", "install", "--torch-backend=cpu", "--editable", "."]
    elif words[0] == "mkdir":
        assert words == ["mkdir", words[1], "&&", "cd", words[1]]
    else:
        (call,) = calls(line)
        understood(call)


def is_target(name: str) -> bool:
    return re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None


@PAGES
def test_commands_and_targets_in_the_docs_exist(page: Path) -> None:
    prose = re.sub(r"```.*?```|<!-- printed.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    spans = re.findall(r"`((?:kdctl|make) [^`]+)`", prose)
    for span in spans:
        words = " ".join(span.split())  # a span may continue in the next line
        if words.startswith("make "):
            assert is_target(words.split()[1]), words
        else:
            assert all(map(exists, calls(words))), words


def test_the_readme_names_the_commands() -> None:
    named = {call[0] for line in SHELL for call in calls(line)} | set(re.findall(r"`kdctl ([a-z]+)", README))
    assert {"plan", "launch", "results", "teachers", "clean", "doctor"} <= named


@pytest.mark.parametrize(
    "line", [line for line in SHELL if re.match(r"kdctl (plan|results|report|query|check|teachers)", line)]
)
def test_lines_of_the_readme_that_train_nothing_run(line: str, folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits_storage: Storage) -> Path:
    """A folder as a reader of the README has it: the examples, and results in `runs`."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", place / "examples")
    shutil.copy(ROOT / "experiments.yaml", place)
    for name in ("runs", "runs-from-python"):
        shutil.copytree(Path(digits_storage.backend.address, "datasets"), place / name / "datasets")
    outcome = launch(
        place / "examples" / "digits.yaml", inline=True, storage=place / "runs", settings=SMALL_DEMO, on_event=ignore
    )
    assert outcome.is_complete
    return place


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[1].split(".")[0])
def test_every_line_of_python_in_the_readme_runs(snippet: str, folder: Path) -> None:
    # The study of the last snippet is cut down: what is shown is that its lines run.
    snippet = snippet.replace('"recipe.epochs=1"', ", ".join(f'"{setting}"' for setting in SMALL_DEMO))
    done = subprocess.run([sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def run_line(line: str, folder: Path) -> str:
    """What a line says that a person types into a shell, where it works."""
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", QUERIES)
def test_every_query_in_the_docs_runs(line: str, folder: Path) -> None:
    said = run_line(line.replace("kdctl query", f"{shlex.quote(sys.executable)} -m orchestrator.cli query"), folder)
    if "--output" in line:
        assert not said and (folder / line.split()[-1]).stat().st_size
    elif "'failed'" in line:
        assert said.split() == ["trial_id", "method", "student", "seed", "state", "failure", "error"]
    else:
        assert len(said.splitlines()) > 1


def test_there_are_queries_in_the_docs() -> None:
    assert len(QUERIES) > 9


def test_the_query_line_that_a_launch_prints_runs(folder: Path) -> None:
    kdctl = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
    settings = [part for setting in SMALL_DEMO for part in ("--set", setting)]
    again = subprocess.run(
        [*kdctl, "launch", "examples/digits.yaml", "--inline", *settings],
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    line = next(line for line in again.stdout.splitlines() if line.startswith("Query:"))
    said = run_line(line.removeprefix("Query:"), folder)
    assert all(method in said for method in ("base", "logit", "st"))
