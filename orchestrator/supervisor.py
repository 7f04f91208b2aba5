"""A small parent for a launch on Ray, which may take its process with it: it starts it again, and cleans up after it.

When Ray's central process dies, its library ends the program that uses it, and when its node process dies that
program waits for ever. So the launch runs in a child, in a session of its own. The parent passes signals on, starts
another child where one was lost (which goes on from what the storage holds), and leaves no process of the session.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from orchestrator.errors import EXIT_INTERRUPTED, EXIT_LOST, EXIT_TRIALS
from orchestrator.processes import session

_PARENT = "KDCTL_SUPERVISOR"  # environment variable of the child: its parent's pid
_RESTARTS = 3  # in a row; a child that lived for _LONG starts a new row
_LONG = 600.0  # seconds
_PATIENCE = 13.0  # seconds for a child to stop after a signal
_KILLING = 10.0  # seconds; a process that waits for a disk cannot be killed
_LOOK = 1.0  # seconds between two looks whether the parent is there, where the kernel does not tell
_PR_SET_PDEATHSIG = 1
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_supervised() -> bool:
    """Whether this process is the child of a supervisor."""
    return os.environ.get(_PARENT, "").isdecimal()


def has_parent() -> bool:
    """Whether this process is the child of a supervisor that is still there."""
    return os.environ.get(_PARENT) == str(os.getppid())


def follow_parent() -> None:
    """Lets a supervisor's child stop, as after SIGTERM, when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    else:  # no other system sends a signal then
        threading.Thread(target=_watch_parent, daemon=True).start()
    if not has_parent():
        os.kill(os.getpid(), signal.SIGTERM)


def _watch_parent() -> None:
    while has_parent():
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


def supervise(arguments: Sequence[str], say: Callable[[str], None], say_how_to_resume: Callable[[], None]) -> int:
    """Runs `kdctl` with these arguments in a child, again where Ray takes it down; returns its exit code.

    `say_how_to_resume` is called where a child was stopped before it could do so itself.
    """
    supervisor = _Supervisor(arguments, say)
    code = supervisor.run()
    if code == EXIT_INTERRUPTED and supervisor.was_hasty:
        say("stopped at once; what runs goes on from its last checkpoint")
        say_how_to_resume()
    return code


class _Supervisor:
    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        # -P: a folder that has a `models/` of its own must not stand for ours.
        self._command = [sys.executable, "-P", "-m", "orchestrator.cli", *arguments]
        self._say = say
        self._child: subprocess.Popen[bytes] | None = None
        self._signals = 0
        self._kill_at = float("inf")
        self.was_hasty = False  # whether a child that was to stop had to be killed

    def run(self) -> int:
        earlier = {number: signal.signal(number, self._hear) for number in _HEARD}
        try:
            return self._run()
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        left = _RESTARTS
        while True:
            start = time.monotonic()
            code = self._run_child()
            if self._signals:
                return EXIT_INTERRUPTED
            if code >= 0 and code != EXIT_LOST:
                return code
            left = _RESTARTS if time.monotonic() - start > _LONG else left - 1
            if left < 0:
                self._say(
                    f"Ray was lost {_RESTARTS + 1} times in a row; see what ends its processes (memory, "
                    "`kdctl doctor`), then go on with the same command, or with --inline"
                )
                return EXIT_TRIALS
            seconds = 2.0 ** (_RESTARTS - 1 - left)
            how = "its processes died" if code == EXIT_LOST else f"signal {-code} ended the launch"
            self._say(f"Ray was lost ({how}); starting again in {seconds:g} s from the last checkpoints")
            time.sleep(seconds)
            if self._signals:
                return EXIT_INTERRUPTED

    def _run_child(self) -> int:
        environment = {**os.environ, _PARENT: str(os.getpid())}
        self._child = subprocess.Popen(self._command, env=environment, start_new_session=True)
        try:
            while True:
                try:
                    return self._child.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    if self._signals and self._kill_at == float("inf"):
                        self._pass_on(signal.SIGTERM)  # it came when there was no child yet
                    if time.monotonic() > self._kill_at:
                        self.was_hasty = True
                        end_session(self._child.pid)
        finally:
            end_session(self._child.pid)
            self._child.wait()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._child is None or self._child.returncode is not None:
            return
        if self._signals > 1:
            self._kill_at = 0.0
            return
        self._pass_on(signal.SIGTERM if number == signal.SIGHUP else number)

    def _pass_on(self, number: int) -> None:
        assert self._child
        self._kill_at = time.monotonic() + _PATIENCE
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, number)


def end_in_time() -> None:
    """Ends this process and its session a while from now, for a child that is to stop and whose parent is gone."""
    timer = threading.Timer(_PATIENCE + 1, _end_now)
    timer.daemon = True
    timer.start()


def _end_now() -> None:
    clear_session()
    os._exit(EXIT_INTERRUPTED)


def clear_session() -> None:
    """Ends every other process of this one's session, where it leads it: for a child whose parent may be gone."""
    if os.getsid(0) == os.getpid():
        end_session(os.getpid(), but=os.getpid())


def end_session(leader: int, but: int | None = None) -> None:
    """Kills what is left of a session; Ray's agents would stay for a minute."""
    deadline = time.monotonic() + _KILLING
    while (pids := set(session(leader)) - {but}) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
