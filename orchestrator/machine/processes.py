"""The processes of this machine: from /proc if there is one, otherwise from `ps`, as on macOS."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def read_start_time(pid: int) -> str | None:
    """When a process of this machine started, as the system writes it; None if the process cannot be seen.

    It is "" for a process that has ended and is still listed; no living process has this start time.
    """
    return _read_start_from_proc(pid) if _has_proc() else _read_start_from_ps(pid)


def exists(pid: int) -> bool:
    """Whether there is such a process, including one of another user that the system hides."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def list_session(leader: int) -> list[int]:
    """The living processes of a session."""
    return _list_session_from_proc(leader) if _has_proc() else _list_session_from_ps(leader)


def read_boot_id() -> str | None:
    """In what pids are unique: the boot of this machine and, on Linux, the process namespace; None if unknown."""
    if not _has_proc():
        return _run("sysctl", "-n", "kern.bootsessionuuid") or None
    with suppress(OSError):
        boot_id = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {(_PROC / 'self/ns/pid').readlink()}"
    return None


def _has_proc() -> bool:
    return (_PROC / "self/stat").exists()


def _read_fields(pid: int) -> list[str]:
    """The state of a process and the later fields of its `stat`. Raises OSError if there is no such process."""
    return (_PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _read_start_from_proc(pid: int) -> str | None:
    try:
        fields = _read_fields(pid)
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def _list_session_from_proc(leader: int) -> list[int]:
    found = []
    for path in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            pid = int(path.parent.name)
            fields = _read_fields(pid)
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(pid)
    return found


def _read_start_from_ps(pid: int) -> str | None:
    state, _, start = _run("ps", "-p", str(pid), "-o", "stat=", "-o", "lstart=").partition(" ")
    return None if not state else "" if state[0] in "ZX" else start.strip()


def _list_session_from_ps(leader: int) -> list[int]:
    lines = [line.split() for line in _run("ps", "-A", "-o", "pid=", "-o", "stat=").splitlines()]
    found = []
    for pid in [int(pid) for pid, state in lines if state[0] not in "ZX"]:
        with suppress(OSError):  # it has ended since, or belongs to somebody else
            if os.getsid(pid) == leader:
                found.append(pid)
    return found


def _run(*command: str) -> str:
    """The output of a system command, with times in UTC and in English; "" if it fails."""
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=10).stdout.strip()
    return ""
