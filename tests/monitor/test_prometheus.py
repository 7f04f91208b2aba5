"""How Prometheus finds launches: a file for each one that runs, and none for those that were killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.monitor import prometheus


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path))
    return tmp_path / "prometheus"


def test_a_launch_is_announced_and_withdrawn(folder: Path) -> None:
    prometheus.announce(["127.0.0.1:1"])
    prometheus.announce(["127.0.0.1:1", "127.0.0.1:2"])
    (file,) = folder.iterdir()
    assert file.name == f"{socket.gethostname()}-{os.getpid()}.json"
    assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:1", "127.0.0.1:2"]}]
    prometheus.withdraw()
    prometheus.withdraw()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_launch_that_was_killed_is_forgotten_and_no_other(folder: Path) -> None:
    killed = "import os; from orchestrator.monitor import prometheus; prometheus.announce(['127.0.0.1:1']); os._exit(0)"
    subprocess.run([sys.executable, "-c", killed], check=True)
    assert len(list(folder.iterdir())) == 1
    gone = max(int(file.stem.rpartition("-")[2]) for file in folder.iterdir())
    others = {"elsewhere-1.json", f"{socket.gethostname()}-{os.getppid()}.json", "notes.txt"}
    others |= {f"{socket.gethostname()}-7-{gone}.json"}  # of a machine that shares the home, and has a longer name
    for other in others:
        (folder / other).touch()
    prometheus.announce(["127.0.0.1:2"])
    ours = f"{socket.gethostname()}-{os.getpid()}.json"
    assert {file.name for file in folder.iterdir()} == {ours, *others}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDCTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        prometheus.announce(["127.0.0.1:1"])
    prometheus.withdraw()
