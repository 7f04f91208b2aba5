"""Where Prometheus finds what a launch exports: a file a launch, for its service discovery (`file_sd_configs`).

Ray writes such a file too, but only the dashboard does, and every cluster of a machine writes the same one.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.cluster import kept_cluster
from orchestrator.errors import ResourceError
from orchestrator.files import write_file
from orchestrator.machine import folders, processes


def folder() -> Path:
    """The folder of these files."""
    return kept_cluster.folder() / "prometheus"


def prepare() -> None:
    """Makes the folder, so that Prometheus can watch it. Raises ResourceError."""
    try:
        folders.make(folder())
    except OSError as error:
        raise ResourceError(
            f"{folder()}, where launches announce themselves to Prometheus, cannot be made ({error.strerror}); name a "
            "folder that can be written in KDCTL_CACHE"
        ) from None


def announce(targets: Sequence[str]) -> None:
    """Lets Prometheus find these `host:port` as long as this process lives, instead of others. Raises OSError."""
    file = _file(os.getpid())
    folders.make(file.parent)
    _sweep()
    write_file(file, json.dumps([{"targets": list(targets)}]))


def withdraw() -> None:
    """Takes back what this process announced."""
    with suppress(OSError, ResourceError):
        _file(os.getpid()).unlink(missing_ok=True)


def _file(pid: int) -> Path:
    return folder() / f"{socket.gethostname()}-{pid}.json"  # machines may share a home


def _sweep() -> None:
    """Removes the files of this machine's launches that were killed."""
    for file in folder().glob("*.json"):
        host, _, pid = file.stem.rpartition("-")
        if host == socket.gethostname() and pid.isdecimal() and not processes.exists(int(pid)):
            file.unlink(missing_ok=True)
