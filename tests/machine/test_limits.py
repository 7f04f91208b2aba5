"""How much of a machine may be used: affinity, and control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.machine import limits


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the control groups of a machine with 64 cores; this process is in /a/b."""
    (tmp_path / "self").write_text("0::/a/b\n")
    monkeypatch.setattr(limits, "_PROCESS", tmp_path / "self")
    monkeypatch.setattr(limits, "_MOUNT", tmp_path / "mount")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    return tmp_path / "mount"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "cores"),
    [
        ("a/b/cpu.max", "250000 100000", 2),
        ("a/cpu.max", "300000 100000", 3),
        ("cpu.max", "50000 100000", 1),  # less than one core, and what a container sees
        ("a/b/cpu.max", "max 100000", 64),
        ("a/b/cpu.max", "strange", 64),
    ],
)
def test_a_quota_of_version_2(groups: Path, name: str, text: str, cores: int) -> None:
    write(groups / name, text)
    assert limits.cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("-1", 64)])
@pytest.mark.parametrize("folder", ["cpu,cpuacct/docker/x", "cpu"])
def test_a_quota_of_version_1(groups: Path, folder: str, quota: str, cores: int) -> None:
    limits._PROCESS.write_text("3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n")
    write(groups / folder / "cpu.cfs_quota_us", quota)
    write(groups / folder / "cpu.cfs_period_us", "100000")
    assert limits.cores() == cores


def test_without_control_groups(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits._PROCESS.unlink()
    assert limits.cores() == 64
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert limits.cores() == 1


@pytest.mark.parametrize(("folder", "name"), [("a/b", "memory.max"), ("memory", "memory.limit_in_bytes")])
def test_memory(groups: Path, folder: str, name: str) -> None:
    whole = limits.memory()
    limits._PROCESS.write_text("0::/a/b\n2:memory:/\n")
    write(groups / folder / name, "max" if name == "memory.max" else str(2**62))
    assert limits.memory() == whole
    write(groups / folder / name, "1000000")
    assert limits.memory() == 1_000_000
