"""Lets Prometheus find the metrics of launches: one file per launch, for its service discovery (`file_sd_configs`).

Ray writes such a file too, but only with its dashboard, and all clusters of a machine overwrite the same file.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import ResourceError
from orchestrator.files import write_file
from orchestrator.machine import folders, processes


def folder() -> Path:
    """The folder of these files."""
    return folders.own() / "prometheus"


def prepare() -> None:
    """Creates the folder, so that Prometheus can watch it. Raises ResourceError."""
    try:
        folders.make(folder())
    except OSError as error:
        raise ResourceError(
            f"{folder()}, by which Prometheus finds launches, cannot be created ({error.strerror}); set KDCTL_CACHE to "
            "a writable folder"
        ) from None


def announce(targets: Sequence[str]) -> None:
    """Lets Prometheus find these `host:port` while this process lives, in place of earlier ones. Raises OSError."""
    file = _file(os.getpid())
    folders.make(file.parent)
    _sweep()
    write_file(file, json.dumps([{"targets": list(targets)}]))


def withdraw() -> None:
    """Removes what this process announced."""
    with suppress(OSError, ResourceError):
        _file(os.getpid()).unlink(missing_ok=True)


def _file(pid: int) -> Path:
    return folder() / f"{socket.gethostname()}-{pid}.json"  # several machines may share a home directory


def _sweep() -> None:
    """Removes the files of launches on this machine that were killed."""
    for file in folder().glob("*.json"):
        host, _, pid = file.stem.rpartition("-")
        if host == socket.gethostname() and pid.isdecimal() and not processes.exists(int(pid)):
            file.unlink(missing_ok=True)
