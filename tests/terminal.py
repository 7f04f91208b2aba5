"""A command in a terminal of its own, for tests: what it shows, and what is typed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

PATIENCE = 30.0  # seconds for what must come, on a busy machine


class Terminal:
    """Runs a command on a pseudo-terminal, all three streams; `code` is its exit code after the block."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.shown = ""
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def type(self, text: str) -> None:
        """Types."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, since: int = 0) -> int:
        """Waits until a text is shown after so many characters; returns how many there are. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown[since:]:
            if not self._read(end - time.monotonic()):
                raise TimeoutError(f"{text!r} did not come after {self.shown[since:]!r}")
        return len(self.shown)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(seconds, 0))
        try:
            got = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other end is closed
            got = b""
        self.shown += got.decode(errors="replace").replace("\r\n", "\n").replace("\a", "")
        return bool(got)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        while self._read(PATIENCE):
            pass
        self.code = self._process.wait(PATIENCE)
        os.close(self._master)
