"""What every benchmark prints: the machine, the versions, and how its figures vary."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine() -> str:
    """Describes, in one line, the processor, its cores, the memory and the versions."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "ray", "pyarrow"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores of {_processor()}, {memory:.0f} GiB"
    return f"{cores}, {platform.system()}; Python {platform.python_version()}, {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # training by itself needs no Ray
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def format_spread(values: Sequence[float], digits: int = 3) -> str:
    """Formats the median, with the minimum and maximum of several values, rounded to `digits` significant digits."""
    median = f"{statistics.median(values):,.{digits}g}"
    return median if len(values) == 1 else f"{median} [{min(values):,.{digits}g}–{max(values):,.{digits}g}]"
