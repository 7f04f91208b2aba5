"""Finds processes in /proc, for tests that kill some and check what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# The loopback address, as the kernel writes it.
LOOPBACK = frozenset({"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"})

Process = tuple[int, str]  # id and start time, so that an id used again is not taken for the same process


def processes() -> dict[Process, int]:
    """Every process that is alive, with its parent's id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *more = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        if state not in "ZX":
            found[int(path.parent.name), more[17]] = int(parent)
    return found


def descendants(root: int) -> set[Process]:
    """The processes below one."""
    parents = processes()
    ids = {root}
    while new := {process[0] for process, parent in parents.items() if parent in ids} - ids:
        ids |= new
    return {process for process in parents if process[0] in ids - {root}}


def titled(of: set[Process], *words: bytes) -> list[int]:
    """Those among some processes whose command line holds one of the words."""
    found = []
    for pid, _ in of:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if any(word in title for word in words):
            found.append(pid)
    return found


def trainers(storage: Path) -> list[int]:
    """The processes that hold the lease of a trial in a storage."""
    found = []
    for path in storage.glob("leases/trial-*.json"):
        try:
            found.append(int(json.loads(path.read_text())["pid"]))
        except (OSError, ValueError):  # it has ended in the meantime
            continue
    return found


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Waits until a condition is true or the time is over; returns its last value."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def listening(pids: set[int]) -> set[str]:
    """The addresses on which some processes listen, as the kernel writes them."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(str(descriptor.readlink()))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.add(local.partition(":")[0])
    return found
