"""Local files are there whole or not at all, and as shared or private as they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.files import PART, replace_file, write_file


@pytest.mark.parametrize("content", ["täxt\n", b"\x00\xff", ""])
def test_a_file_is_written_over_an_earlier_one(tmp_path: Path, content: str | bytes) -> None:
    target = tmp_path / "a.txt"
    write_file(target, "earlier")
    write_file(target, content)
    assert target.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_the_earlier_file(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("earlier")
    with pytest.raises(failure), replace_file(target) as part:
        part.write_text("half")
        assert part.parent == tmp_path and part.name.startswith(PART) and target.read_text() == "earlier"
        raise failure
    assert target.read_text() == "earlier" and list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "none" / "a.txt", "")


def test_a_folder_with_the_name_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "a", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, "here")
    assert (tmp_path / name).read_text() == "here"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_rights_are_those_of_any_new_file_or_private(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "shared", "")
        write_file(tmp_path / "private", "", private=True)
    finally:
        os.umask(before)
    rights = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert rights == {"shared": 0o666 & ~umask, "private": 0o600}
