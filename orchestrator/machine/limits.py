"""How many CPU cores and how much memory this process may use, by its affinity and its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# How often a thread of GNU's OpenMP, which PyTorch uses, looks for work before it sleeps. By default that is 300,000
# times: on a busy machine it then takes the core from the very thread that it waits for, and a step with two threads
# ran at less than half the speed of its share. Without any looks, such a step is a third slower on a quiet machine.
_LOOKS = "20000"
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # with which a user decides it

_PROCESS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores that this process may use at once, at least one; `taskset`, a cpuset or a quota may limit them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([float(allowed), *_read_quotas()])))


def make_thread_environment() -> dict[str, str]:
    """The environment variables with which threads wait for each other briefly, in a process that then loads PyTorch.

    Empty where the environment already decides that.
    """
    return {} if any(name in os.environ for name in _CHOICES) else {_CHOICES[0]: _LOOKS}


def memory() -> int:
    """Bytes of memory that this process may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *_read_memory_limits()])


def _read_quotas() -> Iterator[float]:
    """The share of cores that each control group above this process may have."""
    for group in _find_groups("cpu"):
        with suppress(OSError, ValueError):  # version 2, where `max` means no limit
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):  # version 1, where -1 means no limit
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) / int(period)


def _read_memory_limits() -> Iterator[int]:
    for group in _find_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2 and 1
            with suppress(OSError, ValueError):
                yield int((group / name).read_text())


def _find_groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups of this process, from its own up to the topmost that is visible.

    In a container the path is often that of the host, and only the topmost folder exists.
    """
    with suppress(OSError):
        for line in _PROCESS.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            for mount in (_MOUNT, _MOUNT / "unified") if not names else (_MOUNT / names, _MOUNT / controller):
                own = mount / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))
