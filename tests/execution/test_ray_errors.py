"""What Ray writes when it fails becomes a readable message: complete, without colours, and with advice."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.errors import ResourceError
from orchestrator.execution.ray import _failures, _session
from orchestrator.machine import folders
from orchestrator.records import Failure

# As Ray 2.60 writes them.
MISMATCH = """\
Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.11.9
This process on node 127.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.12.4
"""
STARTUP = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)
FATAL = "[2026-01-02 11:45:57,762 C 71 81] (raylet) dlmalloc.cc:161: create_buffer failed to open file /dev/shm/plasma1"
STACK = "[2026-01-02 11:45:57,763 E 71 81] logging.cc:474: PC: @     0x7fbdcf2a8eec  (unknown)"
NOT_IMPORTED = """\
Failure # 1 (occurred at 2026-01-02_11-00-00)
The actor died unexpectedly before finishing this task.
\tip: 10.1.2.3
RuntimeError: The actor with name TrialWorker failed to import on the worker. This may be because needed library
dependencies are not installed in the worker environment:

Traceback (most recent call last):
  File "graphs.py", line 10, in <module>
    import torch
ModuleNotFoundError: No module named 'torch'

An unexpected internal error occurred while the worker was executing a task.
"""


def read_refusal(error: Exception, monkeypatch: pytest.MonkeyPatch, address: str | None = None) -> str:
    """The message of a launch if Ray does not start because of this error."""

    def init(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(_session, "_reach", lambda address: None)
    with pytest.raises(ResourceError) as caught:
        _session._connect(address, is_kept=False)
    return str(caught.value)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A separate environment, in which Ray has no session yet."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(folders, "of_ray", lambda: tmp_path)  # it refuses the long name of a test's folder


class OfRay(Exception):
    """An exception of an unexpected type."""


@pytest.mark.parametrize("kind", [Exception, RuntimeError, OSError, AssertionError, KeyError, OfRay])
def test_any_exception_of_ray_becomes_a_message(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    text = read_refusal(kind("some reason"), monkeypatch)
    assert text.startswith("a Ray cluster could not be started here (") and "some reason" in text
    assert text.endswith("; train with --inline")


def test_an_exception_without_text_shows_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(OfRay)" in read_refusal(OfRay(), monkeypatch)


def test_a_message_of_several_lines_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    text = read_refusal(RuntimeError(f"\x1b[31m{MISMATCH}\x1b[0m"), monkeypatch, "10.0.0.1:6379")
    assert all(line.strip() in text for line in MISMATCH.splitlines()) and "\x1b" not in text and "\\x1b" not in text
    assert text.startswith("a Ray cluster at '10.0.0.1:6379' cannot be joined:\n  Version mismatch")
    assert "install the cluster's versions" in text and "`ray status`" in text


def test_why_ray_did_not_start_is_read_from_its_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "ray" / f"session_2026-01-02_{os.getpid()}" / "logs"
    logs.mkdir(parents=True)
    other = tmp_path / "ray" / "session_2026-01-03_1" / "logs"  # of another launch
    other.mkdir(parents=True)
    for name in ("raylet.out", "raylet.err"):
        (logs / name).write_text(f"{STACK}\n{FATAL}\n")
    text = read_refusal(Exception(STARTUP), monkeypatch)
    assert text.count("raylet: dlmalloc.cc:161: create_buffer failed") == 1 and "0x7f" not in text
    assert "mount it writable" in text and str(logs) in text


def test_our_own_errors_are_reported_as_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_session, "_check_loopback")
    with pytest.raises(NameError, match="_check_loopback"):
        _session._connect(None, is_kept=False)


def test_without_loopback_there_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_server", unreachable)
    with pytest.raises(ResourceError, match=r"Network is unreachable.*ip link set lo up.*--inline"):
        _session._connect(None, is_kept=False)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
        ("RuntimeError: can't start new thread", "ulimit -u"),
        ("[Errno 28] No space left on device", "RAY_TMPDIR"),
        ("AF_UNIX path length cannot exceed 107 bytes", "shorter folder"),
        ("[Errno 30] Read-only file system: '/tmp/ray'", "RAY_TMPDIR"),
    ],
)
def test_there_is_advice(message: str, advice: str) -> None:
    assert advice in (_failures.find_advice(message) or "")


# Workers that ended.


@pytest.mark.parametrize(
    ("text", "failure", "reason"),
    [
        ("", Failure.LOST_WORKER, "its worker process was lost"),
        ("The actor's node has died", Failure.LOST_WORKER, "its machine was lost"),
        (
            "ray.exceptions.OutOfMemoryError: x",
            Failure.OUT_OF_MEMORY,
            "its worker process was killed because its machine ran out of memory",
        ),
    ],
)
def test_a_worker_that_was_lost_may_be_retried(text: str, failure: Failure, reason: str) -> None:
    assert _failures.explain_loss(text) == (failure, reason)
    assert failure.is_retried


def test_the_reason_of_a_failed_import_names_the_module() -> None:
    failure, reason = _failures.explain_loss(_failures.plain(NOT_IMPORTED))
    assert failure is Failure.ERROR and not failure.is_retried
    assert reason.startswith(
        "its worker on 10.1.2.3 cannot import what it needs (ModuleNotFoundError: No module named 'torch')"
    )


def test_a_worker_that_fails_before_its_first_step_has_a_reason() -> None:
    text = "The actor died because of an error raised in its creation task, (pid=1, ip=127.0.0.1)\nKeyError: 'job'"
    failure, reason = _failures.explain_loss(text)
    assert failure is Failure.ERROR and reason.startswith("its worker cannot start (KeyError: 'job')")
