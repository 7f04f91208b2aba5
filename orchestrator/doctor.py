"""What this machine, its storage and its data are fit for: checks that say what they found, and what to do."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

from orchestrator.catalog import integrity
from orchestrator.catalog.cleanup import read_clock
from orchestrator.cluster import kept_cluster
from orchestrator.columns import table, wrapped
from orchestrator.data.registry import DATASETS
from orchestrator.errors import KdctlError, StorageError
from orchestrator.files import PART
from orchestrator.machine import folders, limits
from orchestrator.storage.backend import MARKER, Folder, StorageBackend
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import acquire
from orchestrator.text import first_line, format_size, printable

_PYTHON = (3, 11)
_MEMORY = 2e9  # bytes; less is soon used up by workers that each load torch
_SHARED_MEMORY = 100e6  # bytes; with less Ray keeps its objects on the disk
_SPACE_LOW, _SPACE_NONE = 5e9, 0.5e9  # bytes; a table over CIFAR-10 has 0.2 GB, weights and checkpoints have less
_DRIFT = 10.0  # seconds between the clocks of storage and machine
_NO_EARLIER = 1_735_689_600.0  # 2025 began, which a clock that was never set does not know


class CheckLevel(StrEnum):
    """How a check ended. A launch may fail for what is bad, and goes on, if less well, for a warning."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found, and the cure where it is not ok."""

    check: str
    verdict: CheckLevel
    found: str
    cure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs."""
        return {"check": self.check, "verdict": self.verdict, "found": self.found, "cure": self.cure}


Result = tuple[CheckLevel, str, str]  # verdict, found, cure


def _ok(found: str) -> Result:
    return CheckLevel.OK, found, ""


def examine(storage: str, data: Path) -> list[CheckResult]:
    """Tries everything that a launch needs, with this storage and data folder. Never raises, and creates no storage."""
    tried = partial(_storage, storage)
    findings = [_finding(name, check) for name, check in _of_machine().items()]
    findings.append(_finding("storage", tried))
    of_storage = _of_storage(storage, data)
    if findings[-1].verdict is CheckLevel.BAD:  # a bucket that cannot be reached would make each of them wait
        found = "not tried, as the storage cannot be used"
        return findings + [
            CheckResult(name, CheckLevel.WARNING, found, "mend the storage, then ask again") for name in of_storage
        ]
    return findings + [_finding(name, check) for name, check in of_storage.items()]


def _of_machine() -> dict[str, Callable[[], Result]]:
    return {
        "python": _python,
        "torch": _torch,
        "gpu": _gpu,
        "cpu": _cpu,
        "memory": _memory,
        "ray": _ray,
        "shared memory": _shared_memory,
        "temporary folder": _temporary_folder,
        "user folder": _own_folder,
        "Ray's token": _token,
    }


def _of_storage(storage: str, data: Path) -> dict[str, Callable[[], Result]]:
    return {
        "free space": partial(_free_space, storage),
        "clock": partial(_clock, storage),
        "files": partial(_files, storage),
        **{name: partial(_data, name, storage, data) for name in DATASETS},
    }


def _finding(name: str, check: Callable[[], Result]) -> CheckResult:
    try:
        verdict, found, cure = check()
    except KdctlError as error:
        found, _, cure = str(error).rpartition("; ")  # most messages end with what to do
        verdict, found, cure = CheckLevel.BAD, found or cure, cure if found else "mend that, then ask again"
    except Exception as error:  # whatever is wrong here is what was asked for
        reason = (str(error).splitlines() or [""])[0]
        verdict, found = CheckLevel.BAD, f"{type(error).__name__}: {reason}"
        cure = f"mend what it names; until then {name} cannot be relied on"
    return CheckResult(name, verdict, printable(found), printable(cure))


# The machine.


def _python() -> Result:
    found, wanted = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, _PYTHON))
    if tuple(sys.version_info[:2]) < _PYTHON:
        return CheckLevel.BAD, f"Python {found}, wanted {wanted} or later", f"install Python {wanted} and kdctl into it"
    return _ok(f"Python {found}")


def _torch() -> Result:
    try:
        import torch
    except Exception as error:  # a library that does not fit makes it fail in many ways
        reason = first_line(error)
        return CheckLevel.BAD, f"torch cannot be imported ({reason})", "install kdctl anew, which brings a torch"
    return _ok(f"torch {torch.__version__}")


def _gpu() -> Result:
    import torch

    with warnings.catch_warnings(record=True) as said:  # torch warns where it does not get along with the driver
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
    if is_usable:
        return _ok("; ".join(map(_one_gpu, range(torch.cuda.device_count()))))
    if not _has_driver():
        return _ok("none, training uses the CPU")
    if torch.version.cuda is None:
        return CheckLevel.WARNING, "a driver of NVIDIA, but a torch for the CPU alone", "install a torch that has CUDA"
    reason = str(said[0].message).splitlines()[0] if said else "it sees no GPU"
    return (
        CheckLevel.WARNING,
        f"a driver of NVIDIA, but torch cannot use it ({reason})",
        "see whether `nvidia-smi` lists a GPU and CUDA_VISIBLE_DEVICES hides none; then renew the driver, or install a "
        f"torch for an older CUDA than {torch.version.cuda}",
    )


def _one_gpu(number: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    has_bf16 = torch.cuda.get_device_capability(number) >= (8, 0)  # older ones emulate it, slowly
    name = torch.cuda.get_device_name(number)
    return f"{name}, {format_size(free)} of {format_size(total)} free, {'bf16' if has_bf16 else 'no bf16'}"


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _cpu() -> Result:
    allowed = limits.cores()
    total = os.cpu_count() or allowed
    return _ok(f"{allowed} cores" + (f" of the machine's {total}" if allowed != total else ""))


def _memory() -> Result:
    total = limits.memory()
    found = format_size(total)
    if total < _MEMORY:
        return (
            CheckLevel.WARNING,
            f"{found}, wanted {format_size(_MEMORY)} or more",
            "launch with --max-concurrent 1",
        )
    return _ok(found)


# Ray. It is not imported, which takes seconds, and no cluster is started, which takes more.


def _ray() -> Result:
    if find_spec("ray") is None:
        return CheckLevel.BAD, "Ray is not installed", "install kdctl anew, which brings it, or launch with --inline"
    return _ok(f"Ray {version('ray')}")


def _shared_memory() -> Result:
    folder = folders.shared_memory()
    if folder is None:
        return _ok("not of this system")
    free = shutil.disk_usage(folder).free
    if free < _SHARED_MEMORY:
        cure = "free it, start a container with --shm-size=1g, or launch with --inline"
        return (
            CheckLevel.WARNING,
            f"{format_size(free)} free in {folder}, Ray wants {format_size(_SHARED_MEMORY)}",
            cure,
        )
    return _ok(f"{format_size(free)} free in {folder}")


def _temporary_folder() -> Result:
    with folders.scratch("kdctl-doctor-"):  # kdctl's own, and Ray's
        return _ok(f"{folders.of_ray()} can be written, and its path is short enough for sockets")


def _token() -> Result:
    kept_cluster.check_token()
    if not kept_cluster.has_tokens():
        return _ok("RAY_AUTH_MODE is set: clusters ask for none")
    return _ok(
        "there is one" if kept_cluster.token() else f"none yet, a launch makes it in {kept_cluster.token_file()}"
    )


def _own_folder() -> Result:
    folder = folders.own()
    if not folders.can_be_written(folder):
        cure = "name a folder that can be written in KDCTL_CACHE"
        return CheckLevel.BAD, f"{folder} cannot be written, where kdctl remembers what it started", cure
    without = "" if folders.home() else "there is no home directory that can be used; "
    return _ok(f"{without}{folder} can be written")


# The storage.


def _nearest(address: str) -> tuple[StorageBackend, bool]:
    """Where a storage can be tried, and whether that is itself: else it is the nearest folder that there is.

    Raises StorageError for an address of no storage.
    """
    backend = Storage.at(address).backend
    if not isinstance(backend, Folder):
        return backend, True
    nearest = next(folder for folder in (backend.root, *backend.root.parents) if folder.exists())
    if not nearest.is_dir():
        raise StorageError(f"{str(nearest)!r} is a file; wanted a folder for the storage; name another with --storage")
    return Folder(nearest), nearest == backend.root


def _storage(address: str) -> Result:
    backend, is_there = _nearest(address)
    _write_and_read(backend)
    tried = "a file was written, replaced, read and removed"
    if not is_there:
        return _ok(f"not there yet, a launch will create it; in {backend.address} {tried}")
    if backend.stat(MARKER) is None:
        return _missing_marker(backend, tried)
    lease = acquire(Storage(backend), f"doctor-{token_hex(6)}")
    if lease is None:
        raise StorageError("a lease that nobody else can know is held; remove what is in leases/, then ask again")
    with lease:
        lease.check()
    return _ok(f"{backend.address}: {tried}, a lease was taken and given back")


def _missing_marker(backend: StorageBackend, tried: str) -> Result:
    if not backend.list_files(Storage.trial_rows):
        return _ok(f"{backend.address} is no storage yet, a launch will make it one; {tried}")
    found = f"{backend.address} has results, but its {MARKER} is missing"
    return CheckLevel.WARNING, found, "see that it is the folder that you mean; the next launch writes that file anew"


def _write_and_read(backend: StorageBackend) -> None:
    name = f"{PART}doctor-{token_hex(6)}"  # which all who read a storage pass over
    try:
        for content in (b"first", b"and second"):
            backend.write(name, content)
            if backend.read(name) != content:
                raise StorageError(
                    f"{backend.describe(name)} does not hold what was written to it last; expected a storage that "
                    "does; use another with --storage"
                )
    finally:
        backend.delete(name)
    if backend.stat(name) is not None:
        raise StorageError(
            f"{backend.describe(name)} is still there after its removal; wanted it gone; check what the storage allows"
        )


def _free_space(address: str) -> Result:
    backend, _ = _nearest(address)
    if not isinstance(backend, Folder):
        return _ok("not known of a bucket")
    free = shutil.disk_usage(backend.root).free
    found = f"{format_size(free)} free at {backend.address}"
    if free >= _SPACE_LOW:
        return _ok(found)
    verdict = CheckLevel.BAD if free < _SPACE_NONE else CheckLevel.WARNING
    return verdict, f"{found}, wanted {format_size(_SPACE_LOW)}", "make room, for example with `kdctl clean`"


def _clock(address: str) -> Result:
    before = time.time()
    there = read_clock(_nearest(address)[0])
    here = time.time()
    drift = max(before - there, there - here, 0.0)  # writing may take a while
    if min(there, here) < _NO_EARLIER:
        found = f"it is {_date(here)} here and {_date(there)} at the storage"
        return CheckLevel.BAD, found, "set the clock, or let it be set (`timedatectl set-ntp true`)"
    if drift > _DRIFT:
        found = f"{drift:,.0f} s between this machine and the storage, wanted less than {_DRIFT:g}"
        return CheckLevel.WARNING, found, "let both be set from the network (`timedatectl set-ntp true`)"
    return _ok(f"{_date(here)}, and the storage agrees")


def _files(address: str) -> Result:
    backend, is_there = _nearest(address)
    found = integrity.find_missing(Storage(backend)) if is_there else []
    if not found:
        return _ok("none that is foreign, and finished trials have their weights and epochs")
    facts, _, cure = "; ".join(text.removeprefix("warning: ") for text in found).rpartition("; ")
    return CheckLevel.WARNING, facts, cure


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _data(name: str, address: str, folder: Path) -> Result:
    storage = Storage.at(address)
    if storage.backend.stat(storage.dataset(name, DATASETS[name].digest)):
        return _ok("prepared in the storage")
    found, fix = DATASETS[name].load_reader().locate(name, folder)
    return (CheckLevel.WARNING, found, fix) if fix else _ok(found)


# Showing.


def is_fit(findings: Sequence[CheckResult]) -> bool:
    """Whether nothing is bad."""
    return all(finding.verdict is not CheckLevel.BAD for finding in findings)


def text(findings: Sequence[CheckResult], width: int | None = None) -> str:
    """All findings, the cures of those that need one, and a summary, in lines of at most `width` columns, if given."""
    rows = [(finding.verdict, finding.check, finding.found) for finding in findings]
    cures: dict[str, list[str]] = {}
    for finding in findings:
        if finding.cure:
            cures.setdefault(finding.cure, []).append(finding.check)
    lines = [wrapped(f"{', '.join(checks)}: {cure}", width) for cure, checks in cures.items()]
    blocks = [table(("verdict", "check", "found"), rows, width), "\n".join(lines), wrapped(_summary(findings), width)]
    return "\n\n".join(filter(None, blocks))


def _summary(findings: Sequence[CheckResult]) -> str:
    ok, warned, bad = (sum(finding.verdict is verdict for finding in findings) for verdict in CheckLevel)
    counts = f"{ok} ok, {warned} warning{'' if warned == 1 else 's'}, {bad} bad"
    return f"{counts}: " + ("mend what is bad first" if bad else "kdctl can train here")
