"""Ctrl-C and SIGTERM: the first one lets what runs write a checkpoint, the second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.errors import EXIT_INTERRUPTED
from orchestrator.supervisor import has_parent

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping(ask: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, a first signal calls `ask` with its name; a second one ends the process.

    Under a supervisor it is the supervisor that ends this process: whoever signals both, as Ray does to stop a job,
    is heard twice here and means it once. In another thread than the main one, where Python hears no signals, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and has_parent():
            return
        if asked:
            os._exit(EXIT_INTERRUPTED)
        asked = True
        ask(signal.Signals(number).name)

    earlier = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
