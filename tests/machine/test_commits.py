"""The commit of a file: claimed only where git holds the file exactly as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.machine import commits

IDENTITY = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *words: str) -> str:
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", "-C", str(folder), *words], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A study file that is committed."""
    git(tmp_path, "init", "-q", "repository")
    file = tmp_path / "repository" / "-study.yaml"
    file.write_text("study: s\n")
    git(file.parent, "add", "-A")
    git(file.parent, "commit", "-qm", "first")
    return file


def test_a_committed_file_has_its_commit(file: Path) -> None:
    assert commits.of_file(file) == commits.of_folder(file.parent) == git(file.parent, "rev-parse", "HEAD")
    (file.parent / "other").write_text("a file beside it may be anything")
    assert commits.of_file(file) is not None


def modified(file: Path) -> Path:
    file.write_text("study: t\n")
    return file


def hidden(file: Path) -> Path:
    """Modified, and git is told to ignore it."""
    git(file.parent, "update-index", "--assume-unchanged", "--", f"./{file.name}")
    return modified(file)


def staged(file: Path) -> Path:
    modified(file)
    git(file.parent, "add", "-A")
    return file


def untracked(file: Path) -> Path:
    new = file.with_name("new.yaml")
    new.write_text("study: s\n")
    return new


def linked(file: Path) -> Path:
    link = file.with_name("link.yaml")
    link.symlink_to(file)
    git(file.parent, "add", "-A")
    git(file.parent, "commit", "-qm", "a link")
    return link


def in_submodule(file: Path) -> Path:
    outer = file.parents[1] / "outer"
    git(outer.parent, "init", "-q", "outer")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(file.parent), "inner")
    return outer / "inner" / file.name


def outside(file: Path) -> Path:
    alone = file.parents[1] / "alone.yaml"
    alone.write_text("study: s\n")
    return alone


def gone(file: Path) -> Path:
    file.unlink()
    return file


@pytest.mark.parametrize("change", [modified, hidden, staged, untracked, linked, in_submodule, outside, gone])
def test_nothing_is_claimed_of_any_other(file: Path, change: Callable[[Path], Path]) -> None:
    assert commits.of_file(change(file)) is None


def test_nothing_is_claimed_where_there_is_no_git(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commits.of_file(file) is None and commits.of_folder(file.parent) is None
