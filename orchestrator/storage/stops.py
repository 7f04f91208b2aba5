"""Asking a launch to stop through the storage: from anywhere that sees it, whatever machine the launch runs on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from orchestrator.errors import StorageError
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import BEAT, Holder, list_holders

PATIENCE = 60.0  # seconds for a launch to stop: an epoch's step, a checkpoint, and the end of Ray


def request(storage: Storage, resource: str) -> None:
    """Asks the launch that holds this lease to stop; it does within seconds, with checkpoints. Raises StorageError."""
    storage.backend.write(storage.stop(resource), b"{}\n")


def is_requested(storage: Storage, resource: str) -> bool:
    """Whether somebody asked for it. Raises StorageError."""
    return storage.backend.stat(storage.stop(resource)) is not None


def find_holder(storage: Storage, resource: str) -> Holder | None:
    """The process whose launch holds this lease now; None where it has ended. Raises StorageError."""
    return list_holders(storage).get(resource)


def wait(storage: Storage, resource: str) -> bool:
    """Waits until a launch has ended; False where that takes longer than `PATIENCE`. Raises StorageError."""
    deadline = time.monotonic() + PATIENCE
    while find_holder(storage, resource):
        if time.monotonic() > deadline:
            return False
        time.sleep(BEAT / 4)
    return True


def clear(storage: Storage, resource: str) -> None:
    """Forgets what was asked of a launch that has ended."""
    with suppress(StorageError):
        storage.backend.delete(storage.stop(resource))


def listen(storage: Storage, resource: str, ask: Callable[[], None], ended: threading.Event) -> threading.Thread:
    """Calls `ask` once somebody asks the launch to stop, from a thread that lives until then or until `ended`."""

    def look() -> None:
        while not ended.wait(BEAT):
            with suppress(StorageError):  # the storage may be back at the next look
                if is_requested(storage, resource):
                    ask()
                    return

    thread = threading.Thread(target=look, name="stops", daemon=True)
    thread.start()
    return thread
