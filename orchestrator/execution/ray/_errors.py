"""What Ray writes when it fails, in exceptions and in its logs, as text for a person. Ray itself is not loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.records import Failure
from orchestrator.text import printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# A line of the log of a process of Ray's: an error, or with C what ended the process.
_LOGGED = re.compile(r"^\[[^]]* ([EC]) \d+ \d+\] (?:\(\w+\) )?(.*)$")
_SHOWN = 3  # lines of a log

_NOT_IMPORTED = "failed to import on the worker"
_NOT_SET_UP = "raised in its creation task"
_ADDRESS = re.compile(r"\bip(?:=|: )([\w.:]+)")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit)\b")  # the last line of a traceback

# What to do about it, by what is found in Ray's words.
_ADVICE: Mapping[str, str] = {
    r"dev/shm|plasma": "Ray keeps its objects in /dev/shm: mount it writable and large enough (docker: --shm-size=1g)",
    r"[Vv]ersion mismatch": "install the cluster's versions of Ray and Python here, or start the cluster with these",
    r"[Tt]oo many open files": "raise the limit of open files (`ulimit -n 65536`)",
    r"start new thread|thread: Resource temporarily unavailable|fork": "raise the limit of processes (`ulimit -u`)",
    r"[Nn]o space left": "free space there, or name another folder in RAY_TMPDIR",
    r"[Pp]ermission denied|[Rr]ead-only file system": "let Ray write there, or name another folder in RAY_TMPDIR",
    r"AF_UNIX path": "name a shorter folder in RAY_TMPDIR, like /tmp",
    r"[Nn]etwork is unreachable": "Ray needs the loopback interface: bring it up (`ip link set lo up`)",
    r"[Aa]ddress already in use": "end the program that listens there",
}


def describe(error: BaseException) -> str:
    """The whole text of an exception, which may have several lines, or its type where it has none."""
    return plain(str(error)) or type(error).__name__


def plain(text: str) -> str:
    """A text of Ray's without colours, blank lines and secrets."""
    lines = (printable(line.rstrip()) for line in _COLOUR.sub("", text).expandtabs(4).splitlines())
    return "\n".join(line for line in lines if line)


def find_advice(text: str) -> str | None:
    """What to do about a failure that Ray describes; None where nothing is known."""
    return next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, text)), None)


def find_logs(folder: Path, pid: int) -> Path | None:
    """The logs of the cluster that a process started last, below Ray's folder."""
    return max(folder.glob(f"session_*_{pid}/logs"), default=None)


def read_errors(logs: Path) -> list[str]:
    """Why processes of a cluster ended, by their logs, or else the last errors that they logged."""
    found: dict[str, dict[str, None]] = {"C": {}, "E": {}}  # each line once: it is in two files
    for path in sorted((*logs.glob("gcs_server.*"), *logs.glob("raylet.*"))):
        with suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                if (match := _LOGGED.match(plain(line))) and not match[2].startswith("logging.cc"):  # a stack
                    found[match[1]][f"{path.stem}: {match[2]}"] = None
    return list(found["C"] or found["E"])[-_SHOWN:]


def raised_here(error: BaseException, package: str = "orchestrator") -> bool:
    """Whether an exception comes from our own code, not from Ray or what it calls."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return str(name).partition(".")[0] == package


def explain_loss(story: str) -> tuple[Failure, str]:
    """What Ray writes about a worker that ended, as a class of failure and a reason for the trial's row.

    One that could not even start would not do so in the next attempt either: what it lacks is named.
    """
    if "OutOfMemoryError" in story or "node running low on memory" in story:
        return Failure.OUT_OF_MEMORY, "its worker process was killed because its machine ran out of memory"
    where = f" on {match[1]}" if (match := _ADDRESS.search(story)) and not match[1].startswith("127.") else ""
    last = next((line.strip() for line in reversed(story.splitlines()) if _RAISED.match(line.strip())), "")
    if _NOT_IMPORTED in story:
        return Failure.ERROR, (
            f"its worker{where} cannot import what it needs ({last or 'no reason given'}); install the same kdctl and "
            "its packages on every machine of the cluster, then launch again"
        )
    if _NOT_SET_UP in story or "RuntimeEnvSetupError" in story:
        return (
            Failure.ERROR,
            f"its worker{where} cannot start ({last or 'no reason given'}); its log has the whole story",
        )
    return Failure.LOST_WORKER, "its machine was lost" if "node has died" in story else "its worker process was lost"
