"""Checks whether this machine, a storage and the data are ready for a launch, with a fix for each problem."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

from orchestrator import codec
from orchestrator.catalog import integrity
from orchestrator.catalog.cleanup import read_clock
from orchestrator.cluster import tokens
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
_NO_EARLIER = 1_735_689_600.0  # the start of 2025; an earlier time means that the clock was never set


class CheckLevel(StrEnum):
    """How a check ended. A launch can fail because of `bad`; with a `warning` it works, but less well."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found, and how to fix it unless it is ok."""

    check: str
    level: CheckLevel = field(metadata=codec.named("verdict"))
    found: str
    fix: str = field(default="", metadata=codec.named("cure"))


_Finding = tuple[CheckLevel, str, str]  # level, found, fix


def _ok(found: str) -> _Finding:
    return CheckLevel.OK, found, ""


def examine(storage: str, data: Path) -> list[CheckResult]:
    """Checks everything that a launch needs, with this storage and data folder. Never raises; creates no storage."""
    check_storage = partial(_storage, storage)
    results = [_run_check(name, check) for name, check in _of_machine().items()]
    results.append(_run_check("storage", check_storage))
    of_storage = _of_storage(storage, data)
    if results[-1].level is CheckLevel.BAD:  # with an unreachable bucket each of them would wait
        found = "not checked, because the storage cannot be used"
        return results + [
            CheckResult(name, CheckLevel.WARNING, found, "fix the storage, then check again") for name in of_storage
        ]
    return results + [_run_check(name, check) for name, check in of_storage.items()]


def _of_machine() -> dict[str, Callable[[], _Finding]]:
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


def _of_storage(storage: str, data: Path) -> dict[str, Callable[[], _Finding]]:
    return {
        "free space": partial(_free_space, storage),
        "clock": partial(_clock, storage),
        "files": partial(_files, storage),
        **{name: partial(_data, name, storage, data) for name in DATASETS},
    }


def _run_check(name: str, check: Callable[[], _Finding]) -> CheckResult:
    try:
        level, found, fix = check()
    except KdctlError as error:
        found, _, fix = str(error).rpartition("; ")  # most messages end with the fix
        level, found, fix = CheckLevel.BAD, found or fix, fix if found else "fix this, then check again"
    except Exception as error:  # any error is a result of the check
        reason = (str(error).splitlines() or [""])[0]
        level, found = CheckLevel.BAD, f"{type(error).__name__}: {reason}"
        fix = f"fix the cause of this error; until then {name} may not work"
    return CheckResult(name, level, printable(found), printable(fix))


# The machine.


def _python() -> _Finding:
    found, expected = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, _PYTHON))
    if tuple(sys.version_info[:2]) < _PYTHON:
        return (
            CheckLevel.BAD,
            f"Python {found}, expected {expected} or later",
            f"install Python {expected}, and kdctl in it",
        )
    return _ok(f"Python {found}")


def _torch() -> _Finding:
    try:
        import torch
    except Exception as error:  # a library that does not fit makes it fail in many ways
        reason = first_line(error)
        return (
            CheckLevel.BAD,
            f"torch cannot be imported ({reason})",
            "reinstall kdctl, which installs a torch that fits",
        )
    return _ok(f"torch {torch.__version__}")


def _gpu() -> _Finding:
    import torch

    with warnings.catch_warnings(record=True) as caught:  # torch warns if it does not fit the driver
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
    if is_usable:
        return _ok("; ".join(map(_one_gpu, range(torch.cuda.device_count()))))
    if not _has_driver():
        return _ok("no GPU; training uses the CPU")
    if torch.version.cuda is None:
        return CheckLevel.WARNING, "an NVIDIA driver, but a torch for CPUs only", "install a torch with CUDA"
    reason = str(caught[0].message).splitlines()[0] if caught else "it sees no GPU"
    return (
        CheckLevel.WARNING,
        f"an NVIDIA driver, but torch cannot use it ({reason})",
        "check that `nvidia-smi` lists a GPU and CUDA_VISIBLE_DEVICES hides none; then update the driver, or install a "
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


def _cpu() -> _Finding:
    allowed = limits.cores()
    total = os.cpu_count() or allowed
    return _ok(f"{allowed} cores" + (f" of the machine's {total}" if allowed != total else ""))


def _memory() -> _Finding:
    total = limits.memory()
    found = format_size(total)
    if total < _MEMORY:
        return (
            CheckLevel.WARNING,
            f"{found}, expected {format_size(_MEMORY)} or more",
            "launch with --max-concurrent 1",
        )
    return _ok(found)


# Ray. It is not imported, which takes seconds, and no cluster is started, which takes more.


def _ray() -> _Finding:
    if find_spec("ray") is None:
        return CheckLevel.BAD, "Ray is not installed", "reinstall kdctl, which includes Ray, or launch with --inline"
    return _ok(f"Ray {version('ray')}")


def _shared_memory() -> _Finding:
    folder = folders.shared_memory()
    if folder is None:
        return _ok("this system has none")
    free = shutil.disk_usage(folder).free
    if free < _SHARED_MEMORY:
        fix = "free it, start a container with --shm-size=1g, or launch with --inline"
        return (
            CheckLevel.WARNING,
            f"{format_size(free)} free in {folder}, Ray needs {format_size(_SHARED_MEMORY)}",
            fix,
        )
    return _ok(f"{format_size(free)} free in {folder}")


def _temporary_folder() -> _Finding:
    with folders.scratch("kdctl-doctor-"):  # kdctl's own, and Ray's
        return _ok(f"{folders.of_ray()} can be written, and its path is short enough for sockets")


def _token() -> _Finding:
    tokens.check_token()
    if not tokens.has_tokens():
        return _ok("RAY_AUTH_MODE is set: clusters require no token")
    return _ok(
        "there is a token" if tokens.read_token() else f"no token yet; a launch creates it in {tokens.token_file()}"
    )


def _own_folder() -> _Finding:
    folder = folders.own()
    if not folders.can_be_written(folder):
        fix = "set KDCTL_CACHE to a writable folder"
        return CheckLevel.BAD, f"{folder}, where kdctl records what it started, cannot be written", fix
    without = "" if folders.home() else "there is no usable home directory; "
    return _ok(f"{without}{folder} can be written")


# The storage.


def _nearest(address: str) -> tuple[StorageBackend, bool]:
    """The backend of a storage and True; if its folder does not exist, the nearest existing parent folder and False.

    Raises StorageError for an address that no storage can have.
    """
    backend = Storage.at(address).backend
    if not isinstance(backend, Folder):
        return backend, True
    nearest = next(folder for folder in (backend.root, *backend.root.parents) if folder.exists())
    return Folder(nearest), nearest == backend.root


def _storage(address: str) -> _Finding:
    backend, is_there = _nearest(address)
    _write_and_read(backend)
    tried = "a file was written, replaced, read and removed"
    if not is_there:
        return _ok(f"does not exist yet, a launch will create it; in {backend.address} {tried}")
    if backend.stat(MARKER) is None:
        return _missing_marker(backend, tried)
    lease = acquire(Storage(backend), f"doctor-{token_hex(6)}")
    if lease is None:
        raise StorageError("a lease with a random name is already held; delete the files in leases/, then check again")
    with lease:
        lease.check()
    return _ok(f"{backend.address}: {tried}, a lease was taken and given back")


def _missing_marker(backend: StorageBackend, tried: str) -> _Finding:
    if not backend.list_files(Storage.trial_rows):
        return _ok(f"{backend.address} is not a storage yet, a launch will make it one; {tried}")
    found = f"{backend.address} has results, but its {MARKER} is missing"
    return CheckLevel.WARNING, found, "check that this is the right folder; the next launch writes the file again"


def _write_and_read(backend: StorageBackend) -> None:
    name = f"{PART}doctor-{token_hex(6)}"  # a name that readers of a storage ignore
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
            f"{backend.describe(name)} still exists after it was deleted; check the permissions of the storage"
        )


def _free_space(address: str) -> _Finding:
    backend, _ = _nearest(address)
    if not isinstance(backend, Folder):
        return _ok("unknown for a bucket")
    free = shutil.disk_usage(backend.root).free
    found = f"{format_size(free)} free at {backend.address}"
    if free >= _SPACE_LOW:
        return _ok(found)
    level = CheckLevel.BAD if free < _SPACE_NONE else CheckLevel.WARNING
    return level, f"{found}, expected {format_size(_SPACE_LOW)}", "make room, for example with `kdctl clean`"


def _clock(address: str) -> _Finding:
    before = time.time()
    there = read_clock(_nearest(address)[0])
    here = time.time()
    drift = max(before - there, there - here, 0.0)  # writing may take a while
    if min(there, here) < _NO_EARLIER:
        found = f"it is {_date(here)} here and {_date(there)} at the storage"
        return CheckLevel.BAD, found, "set the clock, or synchronise it over the network (`timedatectl set-ntp true`)"
    if drift > _DRIFT:
        found = f"{drift:,.0f} s between this machine and the storage, expected at most {_DRIFT:g} s"
        return CheckLevel.WARNING, found, "synchronise both clocks over the network (`timedatectl set-ntp true`)"
    return _ok(f"{_date(here)}, and the storage agrees")


def _files(address: str) -> _Finding:
    backend, is_there = _nearest(address)
    found = integrity.find_missing(Storage(backend)) if is_there else []
    if not found:
        return _ok("no unknown files, and all finished trials have their weights and epochs")
    facts, _, fix = "; ".join(text.removeprefix("warning: ") for text in found).rpartition("; ")
    return CheckLevel.WARNING, facts, fix


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _data(name: str, address: str, folder: Path) -> _Finding:
    storage = Storage.at(address)
    if storage.backend.stat(storage.dataset(name, DATASETS[name].digest)):
        return _ok("prepared in the storage")
    found, fix = DATASETS[name].load_reader().locate(name, folder)
    return (CheckLevel.WARNING, found, fix) if fix else _ok(found)


# Showing.


def is_fit(results: Sequence[CheckResult]) -> bool:
    """Whether no check is bad."""
    return all(result.level is not CheckLevel.BAD for result in results)


def text(results: Sequence[CheckResult], width: int | None = None) -> str:
    """All results, the fixes, and a summary, in lines of at most `width` columns if it is given."""
    rows = [(result.level, result.check, result.found) for result in results]
    fixes: dict[str, list[str]] = {}
    for result in results:
        if result.fix:
            fixes.setdefault(result.fix, []).append(result.check)
    lines = [wrapped(f"{', '.join(checks)}: {fix}", width) for fix, checks in fixes.items()]
    blocks = [table(("result", "check", "found"), rows, width), "\n".join(lines), wrapped(_summary(results), width)]
    return "\n\n".join(filter(None, blocks))


def _summary(results: Sequence[CheckResult]) -> str:
    ok, warned, bad = (sum(result.level is level for result in results) for level in CheckLevel)
    counts = f"{ok} ok, {warned} warning{'' if warned == 1 else 's'}, {bad} bad"
    return f"{counts}: " + ("fix what is bad first" if bad else "kdctl can train here")
