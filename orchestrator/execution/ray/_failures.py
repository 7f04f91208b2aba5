"""Makes readable what Ray writes when it fails, in exceptions and in its logs. Ray itself is not imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.records import Failure
from orchestrator.text import printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# A line in the log of one of Ray's processes: E is an error, C is what ended the process.
_LOGGED = re.compile(r"^\[[^]]* ([EC]) \d+ \d+\] (?:\(\w+\) )?(.*)$")
_MAX_LINES = 3  # of a log in a message

_NOT_IMPORTED = "failed to import on the worker"
_NOT_SET_UP = "raised in its creation task"
_ADDRESS = re.compile(r"\bip(?:=|: )([\w.:]+)")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit)\b")  # the last line of a traceback

# A pattern in what Ray writes → what to do about it.
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
    """The full text of an exception, which may have several lines, or its type if it has no text."""
    return plain(str(error)) or type(error).__name__


def plain(text: str) -> str:
    """A text by Ray without colours, blank lines and secrets."""
    lines = (printable(line.rstrip()) for line in _COLOUR.sub("", text).expandtabs(4).splitlines())
    return "\n".join(line for line in lines if line)


def find_advice(text: str) -> str | None:
    """What to do about a failure that Ray describes; None if nothing is known."""
    return next((advice for pattern, advice in _ADVICE.items() if re.search(pattern, text)), None)


def find_logs(folder: Path, pid: int) -> Path | None:
    """The folder with the logs of the cluster that a process started last, inside Ray's folder."""
    return max(folder.glob(f"session_*_{pid}/logs"), default=None)


def read_errors(logs: Path) -> list[str]:
    """Reads from the logs of a cluster why its processes ended, or else the last errors that they logged."""
    found: dict[str, dict[str, None]] = {"C": {}, "E": {}}  # as keys, because each line is in two files
    for path in sorted((*logs.glob("gcs_server.*"), *logs.glob("raylet.*"))):
        with suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                if (match := _LOGGED.match(plain(line))) and not match[2].startswith("logging.cc"):  # a stack trace
                    found[match[1]][f"{path.stem}: {match[2]}"] = None
    return list(found["C"] or found["E"])[-_MAX_LINES:]


def raised_here(error: BaseException, package: str = "orchestrator") -> bool:
    """Whether an exception comes from our own code, not from Ray or what it calls."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return str(name).partition(".")[0] == package


def explain_loss(text: str) -> tuple[Failure, str]:
    """Turns what Ray writes about a worker that ended into a class of failure and a reason for the trial's row.

    A worker that could not start would not start in the next attempt either, so the reason names what it lacks.
    """
    if "OutOfMemoryError" in text or "node running low on memory" in text:
        return Failure.OUT_OF_MEMORY, "its worker process was killed because its machine ran out of memory"
    where = f" on {match[1]}" if (match := _ADDRESS.search(text)) and not match[1].startswith("127.") else ""
    last = next((line.strip() for line in reversed(text.splitlines()) if _RAISED.match(line.strip())), "")
    if _NOT_IMPORTED in text:
        return Failure.ERROR, (
            f"its worker{where} cannot import what it needs ({last or 'no reason given'}); install the same kdctl and "
            "its packages on every machine of the cluster, then launch again"
        )
    if _NOT_SET_UP in text or "RuntimeEnvSetupError" in text:
        return (
            Failure.ERROR,
            f"its worker{where} cannot start ({last or 'no reason given'}); see its log",
        )
    return Failure.LOST_WORKER, "its machine was lost" if "node has died" in text else "its worker process was lost"
