"""A command in a message works as it is printed, wherever kdctl is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.machine.command_line import format_command


def test_a_command_is_printed_as_the_user_can_type_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert format_command("up") == f"{folder / 'python'} -m orchestrator up"
    (folder / "kdctl").touch(0o755)
    assert format_command("up") == f"{folder / 'kdctl'} up"
    monkeypatch.chdir(tmp_path)
    assert format_command("up") == "bin/kdctl up"
    monkeypatch.chdir(folder)
    assert format_command("up") == "./kdctl up"
    monkeypatch.setenv("PATH", str(folder))
    assert format_command("dashboard", "token") == "kdctl dashboard token"
