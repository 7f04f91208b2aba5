"""Paths that a person gives: `~` is expanded everywhere, and an invalid path never becomes a folder."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator import launch
from orchestrator.cli import cli
from orchestrator.errors import StorageError, StudyError
from orchestrator.machine import paths
from orchestrator.machine.paths import PathError, local, word
from orchestrator.storage.layout import Storage
from orchestrator.study import fields
from orchestrator.study.reader import load_study

STUDY = "study: s\nexperiments:\n- {method: base, dataset: digits, student: resnet_32_8}\n"

Kdctl = Callable[..., tuple[int, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and another folder to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def kdctl() -> Kdctl:
    """Runs a command in this process; returns its exit code (2 for every error of a person) and its output."""

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, words)
        code = getattr(result.exception, "exit_code", result.exit_code)
        return code, f"{result.output}{result.exception or ''}"

    return run


def test_a_home_directory_is_expanded_and_nothing_else(home: Path) -> None:
    assert local("~", "x") == home and local("~/a/b", "x") == home / "a/b" and local(Path("~/a"), "x") == home / "a"
    user = pwd.getpwuid(os.getuid())
    assert local(f"~{user.pw_name}/a", "x") == Path(user.pw_dir, "a")
    for text in ("a~", "./~x", "/~", "a b", "run:1", "~/x"[2:], "a\nb", "..", "-x"):
        assert local(text, "x") == Path(text)


@pytest.mark.parametrize("missing", ["unset", "empty"])
def test_without_a_home_directory_the_message_names_the_fix(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME") if missing == "unset" else monkeypatch.setenv("HOME", "")
    with pytest.raises(
        PathError, match="^storage '~/runs' begins with ~, and you have no home directory here; set HOME"
    ):
        local("~/runs", "storage")
    with pytest.raises(PathError, match="'nobody-of-this-name' has no home directory here"):
        local("~nobody-of-this-name/runs", "storage")


REFUSED = [
    ("", "is empty"),
    ("  ", "is empty"),
    ("\n", "is empty"),
    ("runs\n", "begins or ends with white space"),
    (" runs", "begins or ends with white space"),
    ("ru\0ns", "contains a NUL byte"),
    ("C:\\runs", "is a path of Windows"),
    ("c:/runs", "is a path of Windows"),
    ("\\\\server\\runs", "is a path of Windows"),
    ("s3:/b", "s3://b"),
    ("s3:b/c", "s3://b/c"),
    ("S3://b", "s3://b"),
    ("s3a://b", "s3://b"),
    ("gs:b", "gs://b"),
    ("gs:", "gs://bucket/folder"),
    ("file:/x/y", "write the path alone, like /x/y"),
    ("file:///x", "write the path alone, like /x"),
    ("FILE://localhost/x", "write the path alone, like /x"),
    ("hdfs://host/x", "of a kind that kdctl does not know"),
    ("hdfs:x", "of a kind that kdctl does not know"),
    ("http://host/x", "of a kind that kdctl does not know"),
    ("server:/runs", "of a kind that kdctl does not know"),
    ("://x", "of a kind that kdctl does not know"),
]


@pytest.mark.parametrize(("text", "part"), REFUSED)
def test_an_invalid_path_is_refused_with_the_fix(text: str, part: str, home: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Storage.at(text)
    assert part in str(caught.value) and str(caught.value).startswith("storage ") and caught.value.exit_code == 2
    assert list(Path.cwd().iterdir()) == []


def test_a_file_cannot_be_in_a_bucket(home: Path) -> None:
    with pytest.raises(PathError, match="^--output 's3://b/x.csv' is the address of a bucket; expected a path on"):
        local("s3://b/x.csv", "--output")


def test_a_secret_in_an_address_is_not_shown() -> None:
    with pytest.raises(PathError) as caught:
        local("http://me:hunter22@host/x", "storage")
    assert "hunter22" not in str(caught.value)


# Everywhere that a person gives a path.


def test_every_option_expands_it(home: Path, kdctl: Kdctl, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "s.yaml").write_text(STUDY)
    code, output = kdctl("launch", "~/s.yaml", "--inline", "--storage=~/runs", "--data=~/data", *small())
    assert code == 0, output
    assert (home / "runs/results/trials").is_dir() and f"{home}/runs/results" in output
    code, output = kdctl("query", "SELECT 1 AS a", "--storage", "~/runs", "--output", "~/a.csv")
    assert code == 0 and (home / "a.csv").read_text() == "a\n1\n", output
    monkeypatch.setenv("KDCTL_STORAGE", "~/runs")
    assert kdctl("report", "--output", "~/r.html")[0] == 0 and (home / "r.html").is_file()
    assert "ResNet8" in kdctl("results")[1] and kdctl("results", "~/s.yaml", *small())[0] == 0
    assert kdctl("init", "~/new.yaml")[0] == 0 and (home / "new.yaml").is_file()
    assert kdctl("check", "~/new.yaml")[0] == 0 and kdctl("plan", "~/new.yaml")[0] == 0
    assert kdctl("dashboard", "export", "--output", "~/monitoring")[0] == 0 and (home / "monitoring").is_dir()
    kdctl("doctor", "--storage", "~/other")
    kdctl("clean", "~/s.yaml")
    assert list(Path.cwd().iterdir()) == []


def small() -> list[str]:
    """A study of a second."""
    values = ("recipe.epochs=1", "recipe.limit_train=100", "recipe.limit_test=50", "recipe.milestones=[]")
    return [word for value in values for word in ("--set", value)]


def test_python_expands_it(home: Path) -> None:
    (home / "s.yaml").write_text(STUDY)
    plan = launch.plan_study("~/s.yaml", storage="~/runs")
    assert plan.source == str(home / "s.yaml") and Storage.at(Path("~/runs")).backend.address == str(home / "runs")


def test_weights_expand_it(home: Path, tmp_path: Path) -> None:
    (home / "w.pt").write_bytes(b"weights")
    teacher = "experiments[0].teacher={model: resnet_32_8, weights: ~/w.pt}"
    (tmp_path / "s.yaml").write_text(STUDY.replace("base", "logit"))
    study = load_study(tmp_path / "s.yaml", [teacher])
    assert list(study.experiments[0].teachers[0].digests) == [str(home / "w.pt")]
    with pytest.raises(StudyError, match="teacher.weights: the path 's3://b/w.pt' is the address of a bucket"):
        load_study(tmp_path / "s.yaml", [teacher.replace("~/", "s3://b/")])


@pytest.mark.parametrize(
    "words",
    [
        ("launch", "s3://b/s.yaml", "--inline"),
        ("launch", "s.yaml", "--inline", "--data", "s3://b/data"),
        ("launch", "s.yaml", "--inline", "--data="),
        ("plan", "s.yaml", "--storage="),
        ("check", ""),
        ("init", "file:///x.yaml"),
        ("results", "--storage", "file:/x"),
        ("status", "--storage", "C:\\runs"),
        ("logs", "1f", "--storage", "hdfs://x"),
        ("stop", "--storage", "s3:/b"),
        ("clean", "--storage", "gs:b"),
        ("teachers", "--storage", "s3:/b"),
        ("report", "--storage", "runs\n"),
        ("report", "--output", "s3://b/r.html"),
        ("query", "SELECT 1", "--output", "file:///x.csv"),
        ("query", "SELECT 1", "--storage", "s3:b"),
        ("dashboard", "export", "--output", "s3:/b"),
        ("doctor", "--data", "s3://b"),
    ],
)
def test_every_command_refuses_the_rest(words: tuple[str, ...], home: Path, kdctl: Kdctl) -> None:
    Path("s.yaml").write_text(STUDY)
    code, output = kdctl(*words)
    assert code == 2 and ("address" in output or "empty" in output or "Windows" in output or "white space" in output), (
        output
    )
    assert [path.name for path in Path.cwd().iterdir()] == ["s.yaml"]


def test_a_path_in_a_study_is_refused_as_a_fault(home: Path, kdctl: Kdctl) -> None:
    code, output = kdctl("check", "s3://b/s.yaml", "--json")
    assert code == 2 and '"line": null' in output and "is the address of a bucket" in output


def test_a_name_that_begins_with_a_dash_is_typed_so_that_it_works(home: Path, kdctl: Kdctl) -> None:
    assert word("-s.yaml") == "./-s.yaml" and word("s.yaml") == "s.yaml"
    code, output = kdctl("init", "--", "-s.yaml")
    assert code == 0 and "kdctl launch ./-s.yaml" in output
    assert kdctl("check", "--", "-s.yaml")[0] == 0 and kdctl("check", "./-s.yaml")[0] == 0


def test_only_one_function_expands_it() -> None:
    source = Path(fields.__file__).parents[1]
    users = {path.name for path in source.rglob("*.py") if "expanduser" in path.read_text()}
    assert users == {"paths.py"} and paths.BUCKETS == ("s3://", "gs://")
