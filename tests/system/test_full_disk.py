"""A full disk behind standard output is no bug, nor is a closed stream or a reader that left."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.machine import output

STUDY = """\
study: s
recipe: {epochs: 1, limit_train: 100, limit_test: 50, milestones: []}
experiments:
- {method: base, dataset: digits, student: resnet_32_8}
"""

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")


def sh(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of a shell, in which `kdctl` is the one under test."""
    (folder / "s.yaml").write_text(STUDY)
    kdctl = f"{shlex.quote(sys.executable)} -P -m orchestrator.cli"
    script = f'kdctl() {{ {kdctl} "$@"; }}; {line}'
    return subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)


@full
@pytest.mark.parametrize(
    "words",
    [
        "--help", "--version", "init --help", "check s.yaml", "plan s.yaml", "plan s.yaml --json", "schema", "results",
        "results --json", "query 'SELECT 1'", "query 'FROM range(100000)' --format csv",
        "query 'FROM range(100000)' --format parquet", "teachers", "doctor", "completion bash", "clean --json",
        "launch s.yaml --inline --json",  # which trains all the same: nobody need read its events
    ],
)  # fmt: skip
def test_a_full_disk_is_reported_and_is_no_bug(tmp_path: Path, words: str) -> None:
    done = sh(tmp_path, f"kdctl {words} > /dev/full")
    assert done.returncode == 2, done.stderr
    assert "cannot be written (No space left on device): the disk is full; make room" in done.stderr
    assert "bug" not in done.stderr and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@full
def test_nothing_is_printed_if_standard_error_is_full_too(tmp_path: Path) -> None:
    assert sh(tmp_path, "kdctl check nothing.yaml 2> /dev/full").returncode == 2
    assert sh(tmp_path, "kdctl schema > /dev/full 2>&1").returncode == 2
    done = sh(tmp_path, "kdctl schema 2> /dev/full")
    assert done.returncode == 0 and done.stdout


def test_a_reader_that_left_is_no_bug(tmp_path: Path) -> None:
    done = sh(tmp_path, "kdctl query 'FROM range(100000)' --format csv | head -1")
    assert (done.stdout, done.stderr) == ("range\n", "")
    done = sh(tmp_path, "kdctl check nothing.yaml 2>&1 | true")
    assert (done.stdout, done.stderr) == ("", "")


def test_nothing_is_written_to_a_closed_stream_or_to_a_file_with_its_number(tmp_path: Path) -> None:
    for streams in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        done = sh(tmp_path, f"kdctl query 'SELECT 1 AS a' --output a.csv {streams}")
        assert done.returncode == 0 and (tmp_path / "a.csv").read_text() == "a\n1\n", done.stderr
        assert sh(tmp_path, f"kdctl results {streams}").returncode == 0


def test_only_what_a_disk_does_is_no_bug() -> None:
    text = output.complaint(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x"))
    assert text and text.startswith("/tmp/x cannot be written (No space left on device): the disk is full")
    text = output.complaint(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert text and text.startswith("standard output, or a temporary file, cannot be written (Input/output error)")
    assert output.complaint(OSError(errno.ENOENT, "x")) is None and output.complaint(OSError("x")) is None
