"""Completion in a shell: through the mechanism of each shell, quickly, without messages, and in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from terminal import Terminal

from orchestrator.cli import cli
from orchestrator.commands.shared import completion
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import fields, stored_studies
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study

KDCTL = Path(sys.executable).with_name("kdctl")
STUDY = """\
study: tiny
experiments:
  - {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1]}
  - {method: logit, dataset: digits, student: resnet_32_8, teacher: resnet_32_14}
"""
ROW = TrialRecord(
    **{
        **dict.fromkeys(TrialRecord.__slots__),  # type: ignore[arg-type]
        **{"no": 1, "method": "base", "dataset": "digits", "student": "resnet_32_8", "start_time": datetime.now(UTC)},
        **{"nepoch": 1, "lr": 0.1, "batch_size": 32, "seed": 7, "study": "tiny", "state": State.RUNNING},
        **{"recipe": {}, "kdctl_version": "0", "resumed": 0},
    }
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with study files, another folder, and a storage that remembers a study whose teacher has a row."""
    monkeypatch.chdir(tmp_path)
    for name in ("KDCTL_STORAGE", "KDCTL_DATA"):
        monkeypatch.delenv(name, raising=False)
    for file in ("study.yaml", "other.yml", "with a blank.yaml", "notes.txt"):
        (tmp_path / file).write_text(STUDY)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "deep.yaml").write_text(STUDY)
    remember(Storage.at("runs"))
    return tmp_path


def remember(storage: Storage) -> None:
    storage.prepare()
    plan = make_plan(load_study("study.yaml"))
    launched = stored_studies.Launch("launch-1", datetime.now(UTC), "host", "inline", "study.yaml", STUDY, (), "data")
    stored_studies.store_plan(storage, plan, launched)
    store.write_trial(storage, replace(ROW, trial_id=plan.trials[0].trial_id))


Offer = Callable[..., list[str]]


@pytest.fixture
def complete(home: Path) -> Offer:
    """Completes a line as bash does; asserts that nothing else is printed."""

    def complete(*words: str, **environment: str) -> list[str]:
        variables = {completion.VARIABLE: "bash_complete", "COMP_WORDS": "\n".join(["kdctl", *words])}
        done = subprocess.run(
            [KDCTL], capture_output=True, text=True, cwd=home,
            env={**os.environ, **variables, "COMP_CWORD": str(len(words)), **environment},
        )  # fmt: skip
        assert done.stderr == ""
        return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]

    return complete


def members(storage: str = "runs") -> list[stored_studies.Member]:
    return list(stored_studies.find(Storage.at(storage)).members)


def test_commands_options_and_choices(complete: Offer) -> None:
    assert set(complete("c")) == {name for name in cli.commands if name.startswith("c")} >= {"check", "clean"}
    assert complete("teachers", "ver") == ["verify"]
    assert complete("plan", "study.yaml", "--se") == ["--set"]
    assert complete("results", "--format", "m") == ["markdown"]
    assert complete("completion", "") == list(completion.SHELLS)


def test_study_files_and_folders(complete: Offer) -> None:
    assert complete("plan", "") == ["other.yml", "study.yaml", "with a blank.yaml", "dir,"]
    assert complete("launch", "studies/") == ["studies/deep.yaml", "dir,studies/"]
    assert complete("check", "./st") == ["./study.yaml", "dir,./st"]
    assert complete("clean", "study.yaml", "oth") == ["other.yml", "dir,oth"]
    assert complete("plan", "study.yaml", "--storage", "r") == ["dir,r"]


def test_files_and_remembered_studies(complete: Offer) -> None:
    assert complete("results", "") == ["tiny", "other.yml", "study.yaml", "with a blank.yaml", "dir,"]
    assert complete("results", "ti") == ["tiny", "dir,ti"]


def test_teachers_that_have_a_row(complete: Offer) -> None:
    (teacher,) = [member.trial_id for member in members() if member.role == "teacher"]
    assert complete("teachers", "verify", "") == [teacher]
    assert complete("teachers", "verify", teacher[:3]) == [teacher]
    assert complete("teachers", "verify", "zz") == []


def test_the_storage_is_the_one_that_the_line_or_the_environment_names(complete: Offer, home: Path) -> None:
    shutil.move("runs", "elsewhere")
    assert complete("results", "ti") == ["dir,ti"]
    assert complete("results", "--storage", "elsewhere", "ti") == ["tiny", "dir,ti"]
    assert complete("results", "ti", KDCTL_STORAGE="elsewhere") == ["tiny", "dir,ti"]
    (teacher,) = [member.trial_id for member in members("elsewhere") if member.role == "teacher"]
    assert complete("teachers", "--storage", "elsewhere", "verify", "") == [teacher]


def test_keys_of_a_study_file(complete: Offer) -> None:
    known = complete("plan", "study.yaml", "--set", "")
    assert {f"recipe.{name}=" for name in fields.RECIPE_KEYS} | {"resources.retries=", "study="} <= set(known)
    assert [line for line in known if line.startswith("exp")] == ["experiments[0].", "experiments[1]."]
    assert complete("launch", "study.yaml", "--set", "recipe.ep") == ["recipe.epochs="]
    assert "experiments[1].teacher=" in complete("launch", "study.yaml", "--set", "experiments[1].t")
    assert complete("launch", "notes", "--set", "experiments[") == ["experiments[0]."]


def test_trials_come_with_their_titles(home: Path) -> None:
    import click

    context = click.Context(cli)
    context.params["storage"] = "runs"
    found = completion.trials(context, click.Argument(["trial"]), "")
    assert [(item.value, item.help) for item in found] == [(member.trial_id, member.title) for member in members()]
    first = members()[0].trial_id
    assert [item.value for item in completion.trials(context, click.Argument(["trial"]), first[:4])] == [first]


@pytest.mark.parametrize("storage", ["none", "study.yaml", "s3://bucket/that/would/be/read", "ftp://nonsense"])
def test_no_storage_is_no_error(complete: Offer, storage: str) -> None:
    assert complete("results", "--storage", storage, "ti") == ["dir,ti"]
    assert complete("teachers", "--storage", storage, "verify", "") == []


def test_a_damaged_storage_is_no_error(complete: Offer, home: Path) -> None:
    for path in (home / "runs" / "plans").iterdir():
        path.write_bytes(b"\xff{")
    assert complete("results", "ti") == ["dir,ti"]
    shutil.rmtree(home / "runs" / "plans")
    (home / "runs" / "plans").write_text("a file")
    assert complete("results", "ti") == ["dir,ti"]


def test_nonsense_is_no_error(complete: Offer) -> None:
    assert complete("plan", "nowhere/") == []
    assert complete("plan", "x", _KDCTL_COMPLETE="bash_nonsense") == []
    assert complete("plan", "x", COMP_CWORD="many") == []


def test_a_storage_that_hangs_is_not_waited_for(home: Path) -> None:
    script = "import time\nfrom orchestrator.study import stored_studies\n"
    script += "stored_studies.list_studies = lambda storage: time.sleep(600)\n"
    script += "from orchestrator.cli import main\nmain()"
    variables = {completion.VARIABLE: "bash_complete", "COMP_WORDS": "kdctl results ti", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env={**os.environ, **variables})
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_completing_loads_nothing_heavy(home: Path) -> None:
    script = "import sys, atexit\n"
    script += "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.__stderr__))\n"
    script += "from orchestrator.cli import main\nmain()"
    for words in ("results ti", "teachers verify 0", "plan study.yaml --set recipe"):
        variables = {completion.VARIABLE: "zsh_complete", "COMP_WORDS": f"kdctl {words}"}
        variables["COMP_CWORD"] = str(len(words.split()))
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
        assert "click" in done.stderr.split()
        assert not set(done.stderr.split()) & {"torch", "ray", "pyarrow", "numpy", "duckdb"}


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_a_script_that_it_can_run(shell: str) -> None:
    done = subprocess.run([KDCTL, "completion", shell], capture_output=True, text=True, check=True)
    assert f"{completion.VARIABLE}={shell}_complete" in done.stdout and done.stderr == ""
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=done.stdout, text=True, check=True)


def test_the_script_for_bash_has_the_three_changes() -> None:
    # If Click changes its script, these changes have to be made again.
    assert all(part in completion.Bash.source_template for part in ("nospace", "plusdirs", 'COMPREPLY+=("$value")'))


BASH = shutil.which("bash")


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_a_real_bash_completes(home: Path) -> None:
    path = f"{KDCTL.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PS1": "ready> ", "TERM": "dumb", "HISTFILE": ""}
    with Terminal([str(BASH), "--norc", "--noprofile", "-i"], home, environment) as bash:
        bash.wait_for("ready> ")
        bash.type('stty cols 300; eval "$(kdctl completion bash)"; echo sour""ced\n')
        bash.wait_for("sourced\n")
        (teacher,) = [member.trial_id for member in members() if member.role == "teacher"]
        for typed, expected in [
            ("kdctl laun\t", "kdctl launch "),
            ("kdctl plan stu\t", "kdctl plan stud"),  # a file and a folder begin so
            ("kdctl plan study\t", "kdctl plan study.yaml "),
            ("kdctl plan studies/\t", "kdctl plan studies/deep.yaml "),
            ("kdctl plan with\t", "kdctl plan with\\ a\\ blank.yaml "),
            ("kdctl results ti\t", "kdctl results tiny "),
            (f"kdctl teachers verify {teacher[:4]}\t", f"kdctl teachers verify {teacher} "),
            ("kdctl plan study.yaml --set recipe.ep\t2", "--set recipe.epochs=2"),
            ("kdctl plan study.yaml --set experiments[1].see\t7", "--set experiments[1].seed=7"),
        ]:
            since = len(bash.output)
            bash.type(typed)
            bash.wait_for(expected, since)
            bash.type("\x15")  # empties the line
        bash.type("exit\n")
    assert bash.code == 0
