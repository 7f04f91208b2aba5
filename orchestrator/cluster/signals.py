"""Ctrl-C, SIGTERM and SIGHUP: the first one lets what runs write a checkpoint, the second one ends at once.

A signal that was ignored when the process started, as after `nohup` or a shell's `&`, stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.cluster.supervisor import STOPS, drop_ignored, has_parent
from orchestrator.errors import EXIT_INTERRUPTED


@contextmanager
def handle_stops(ask: Callable[[str], None]) -> Iterator[None]:
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
        if asked and (has_parent() or number == signal.SIGHUP):  # a terminal that closes sends it several times
            return
        if asked:
            os._exit(EXIT_INTERRUPTED)
        asked = True
        ask(signal.Signals(number).name)

    earlier = {number: signal.signal(number, hear) for number in drop_ignored(STOPS)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
