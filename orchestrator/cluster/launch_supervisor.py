"""A small parent process for a launch on Ray: it restarts the launch when Ray ends it, and cleans up afterwards.

When Ray's central process dies, its library ends the program that uses it; when its node process dies, that program
waits forever. So the launch runs in a child process, in a session of its own. The parent passes signals on, starts
another child when one was lost (it resumes from what the storage holds), and leaves no process of the session.

Ray's library ends the child with code 1, which is also the code of a study with a failed trial. So the child announces
its exit code through a pipe; a child that ends without an announcement was lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from orchestrator.errors import EXIT_INTERRUPTED, EXIT_LOST, EXIT_TRIALS
from orchestrator.machine.processes import list_session

_PARENT = "KDCTL_SUPERVISOR"  # environment variable of the child: its parent's pid
_PIPE = "KDCTL_SUPERVISOR_PIPE"  # and the descriptor through which it announces its exit code
_STUDY = "KDCTL_SUPERVISOR_STUDY"  # and the descriptor of the study file's text, because a pipe can be read only once
_RESTARTS = 3  # in a row; a child that ran for _LONG seconds resets the count
_LONG = 600.0  # seconds
_PATIENCE = 13.0  # seconds for a child to stop after a signal
_KILL_TIMEOUT = 10.0  # seconds; a process that waits for a disk cannot be killed
_POLL_INTERVAL = 1.0  # seconds between checks for the parent, on systems whose kernel does not send a signal
_PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the signals that ask a launch to stop


def is_supervised() -> bool:
    """Whether this process is the child of a supervisor."""
    return os.environ.get(_PARENT, "").isdecimal()


def has_parent() -> bool:
    """Whether this process is the child of a supervisor that is still running."""
    return os.environ.get(_PARENT) == str(os.getppid())


def drop_ignored(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """The signals that this process does not ignore: `nohup` and a shell's `&` start a program with some ignored."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def follow_parent() -> None:
    """Makes a supervisor's child stop, as after SIGTERM, when its parent dies."""
    number = next(iter(drop_ignored((signal.SIGTERM, *STOPS))), signal.SIGKILL)
    if sys.platform == "linux":
        import ctypes  # here, because no other command needs it

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    else:  # other systems send no signal
        threading.Thread(target=_watch_parent, args=(number,), daemon=True).start()
    if not has_parent():
        os.kill(os.getpid(), number)


def announce_end(code: int) -> None:
    """Tells the supervisor of this process, if it has one, the exit code; the last step of the process.

    A supervisor takes a child that announced no code for lost.
    """
    if has_parent():
        with suppress(OSError, ValueError):
            os.write(int(os.environ.get(_PIPE, "")), bytes([code]))


def read_study_text() -> str | None:
    """The text of the study file that the supervisor of this process read; None without a supervisor."""
    descriptor = os.environ.get(_STUDY, "")
    if not (has_parent() and descriptor.isdecimal()):
        return None
    with os.fdopen(os.dup(int(descriptor)), "rb") as file:
        file.seek(0)
        return file.read().decode("utf-8", "surrogatepass")


def _watch_parent(number: int) -> None:
    while has_parent():
        time.sleep(_POLL_INTERVAL)
    os.kill(os.getpid(), number)


def supervise(
    arguments: Sequence[str], study: str, say: Callable[[str], object], say_how_to_resume: Callable[[], None]
) -> int:
    """Runs `kdctl` with these arguments in a child, again whenever Ray ends it; returns its exit code.

    `study` is the text of the study file, which a child gets from `read_study_text`. `say_how_to_resume` is called
    if a child was stopped before it could do so itself.
    """
    with tempfile.TemporaryFile() as file:
        file.write(study.encode("utf-8", "surrogatepass"))
        file.flush()
        supervisor = _Supervisor(arguments, file.fileno(), say)
        code = supervisor.run()
    if code == EXIT_INTERRUPTED and supervisor.was_hasty:
        say("stopped at once; running trials resume from their last checkpoints")
        say_how_to_resume()
    return code


class _Supervisor:
    def __init__(self, arguments: Sequence[str], study: int, say: Callable[[str], object]) -> None:
        # -P: modules of the working folder, such as its own `models/`, must not replace ours.
        self._command = [sys.executable, "-P", "-m", "orchestrator.cli", *arguments]
        self._study = study  # a descriptor
        self._say = say
        self._first: signal.Signals | None = None  # the first signal that was received
        self._child: subprocess.Popen[bytes] | None = None
        self._signals = 0
        self._kill_at = float("inf")
        self.was_hasty = False  # whether a child that was asked to stop had to be killed

    def run(self) -> int:
        earlier = {number: signal.signal(number, self._receive) for number in drop_ignored(STOPS)}
        if drop_ignored([signal.SIGTSTP]):
            earlier[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            return self._run()
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        left = _RESTARTS
        while True:
            start = time.monotonic()
            code, announced = self._run_child()
            if announced is not None:
                return announced
            if self._first:
                return EXIT_INTERRUPTED
            left = _RESTARTS if time.monotonic() - start > _LONG else left - 1
            if left < 0:
                self._say(_describe_end(code))
                return EXIT_TRIALS
            seconds = 2.0 ** (_RESTARTS - 1 - left)
            self._say(f"Ray was lost ({_explain(code)}); starting again in {seconds:g} s from the last checkpoints")
            time.sleep(seconds)
            if self._first:
                return EXIT_INTERRUPTED

    def _run_child(self) -> tuple[int, int | None]:
        """The exit code of a child, and the code that it announced; None if it announced none."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)  # a process that the child started may keep the other end open
        environment = {**os.environ, _PARENT: str(os.getpid()), _PIPE: str(writing), _STUDY: str(self._study)}
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            try:
                self._child = subprocess.Popen(
                    self._command, env=environment, start_new_session=True, pass_fds=(writing, self._study)
                )
            finally:
                os.close(writing)
            code = self._wait(self._child)
            announced = pipe.read()
        if announced:
            self.was_hasty = False  # it reached its end before it was killed
        return code, announced[-1] if announced else None

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        try:
            while True:
                try:
                    return child.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    if self._first and self._kill_at == float("inf"):
                        self._pass_on(self._first)  # it was received before there was a child
                    if time.monotonic() > self._kill_at:
                        self.was_hasty = True
                        end_session(child.pid)
        finally:
            end_session(child.pid)
            child.wait()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_first, self._first = self._first is None, self._first or signal.Signals(number)
        if self._child is None or self._child.returncode is not None:
            return
        if is_first:
            self._pass_on(number)
        elif number != signal.SIGHUP:  # a closing terminal sends it several times; that is no request to hurry
            self._kill_at = 0.0

    def _pass_on(self, number: int) -> None:
        assert self._child
        self._kill_at = time.monotonic() + _PATIENCE
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, number)

    def _suspend(self, _: int, frame: FrameType | None) -> None:
        """Ctrl-Z: suspends and resumes the child's session, which no terminal controls, together with this process."""
        pids = list_session(self._child.pid) if self._child else []
        start = time.monotonic()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            if number is signal.SIGSTOP:
                os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT, which `fg` and `bg` send
        self._kill_at += time.monotonic() - start


def _explain(code: int) -> str:
    """Why a child was lost, from its exit code."""
    if code < 0:
        return f"signal {-code} ended the launch"
    return "its processes died" if code == EXIT_LOST else "its library ended the launch"


def _describe_end(code: int) -> str:
    logs = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "session_latest", "logs")  # noqa: S108 - Ray's own
    return (
        f"Ray was lost {_RESTARTS + 1} times in a row, the last time because {_explain(code)}; see what ends "
        f"its processes (memory, `kdctl doctor`, Ray's logs in {logs}), "
        "then resume with the same command, or with --inline"
    )


def end_in_time() -> None:
    """Ends this process and its session after a while, for a child that was asked to stop and whose parent is gone."""
    timer = threading.Timer(_PATIENCE + 1, _end_now)
    timer.daemon = True
    timer.start()


def _end_now() -> None:
    clear_session()
    os._exit(EXIT_INTERRUPTED)


def clear_session() -> None:
    """Ends all other processes of this session if this process leads it: for a child whose parent may be gone."""
    if os.getsid(0) == os.getpid():
        end_session(os.getpid(), but=os.getpid())


def end_session(leader: int, but: int | None = None) -> None:
    """Kills all processes of a session, except `but`; Ray's agents would otherwise run for another minute."""
    deadline = time.monotonic() + _KILL_TIMEOUT
    while (pids := set(list_session(leader)) - {but}) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
