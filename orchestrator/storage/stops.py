"""Requests through the storage that a launch stop, from any machine that can write to the storage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from orchestrator.errors import StorageError
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import BEAT, Holder, list_holders

PATIENCE = 60.0  # seconds for a launch to stop: a step, a checkpoint, and the shutdown of Ray


def request(storage: Storage, resource: str) -> None:
    """Asks the launch that holds this lease to stop, which takes seconds, with checkpoints. Raises StorageError."""
    storage.backend.write(storage.stop(resource), b"{}\n")


def is_requested(storage: Storage, resource: str) -> bool:
    """Whether the launch was asked to stop. Raises StorageError."""
    return storage.backend.stat(storage.stop(resource)) is not None


def find_holder(storage: Storage, resource: str) -> Holder | None:
    """The process of the launch that holds this lease; None if it has ended. Raises StorageError."""
    return list_holders(storage).get(resource)


def wait(storage: Storage, resource: str) -> bool:
    """Waits until a launch has ended; False if that takes longer than `PATIENCE`. Raises StorageError."""
    deadline = time.monotonic() + PATIENCE
    while find_holder(storage, resource):
        if time.monotonic() > deadline:
            return False
        time.sleep(BEAT / 4)
    return True


def clear(storage: Storage, resource: str) -> None:
    """Deletes the request to a launch that has ended."""
    with suppress(StorageError):
        storage.backend.delete(storage.stop(resource))


def listen(storage: Storage, resource: str, on_stop: Callable[[], None], ended: threading.Event) -> threading.Thread:
    """Calls `on_stop` once the launch is asked to stop, from a thread that runs until then or until `ended`."""

    def poll() -> None:
        while not ended.wait(BEAT):
            with suppress(StorageError):  # the storage may be reachable again next time
                if is_requested(storage, resource):
                    on_stop()
                    return

    thread = threading.Thread(target=poll, name="stops", daemon=True)
    thread.start()
    return thread
