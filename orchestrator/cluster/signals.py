"""Ctrl-C, SIGTERM and SIGHUP: after the first, running trials write a checkpoint; the second ends at once.

A signal that was ignored when the process started, as after `nohup` or a shell's `&`, stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.cluster.launch_supervisor import STOPS, drop_ignored, has_parent
from orchestrator.errors import EXIT_INTERRUPTED


@contextmanager
def handle_stops(on_stop: Callable[[str], None]) -> Iterator[None]:
    """Within, a first signal calls `on_stop` with its name, and a second one ends the process.

    Under a supervisor, the supervisor ends this process instead: if both get a signal, as when Ray stops a job, this
    process gets the same signal twice. Only the main thread of Python can handle signals; in any other thread this
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_stopping = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping and (has_parent() or number == signal.SIGHUP):  # a closing terminal sends it several times
            return
        if is_stopping:
            os._exit(EXIT_INTERRUPTED)
        is_stopping = True
        on_stop(signal.Signals(number).name)

    earlier = {number: signal.signal(number, receive) for number in drop_ignored(STOPS)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
