"""A command in a terminal of its own, for tests that type something and read what is shown."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

PATIENCE = 30.0  # seconds to wait for output, on a busy machine


class Terminal:
    """Runs a command on a pseudo-terminal, with all three streams; after the block, `code` is its exit code."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.output = ""
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def type(self, text: str) -> None:
        """Types a text."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, since: int = 0) -> int:
        """Waits for a text after `since` characters of output; returns their number by then. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while text not in self.output[since:]:
            if not self._read(end - time.monotonic()):
                raise TimeoutError(f"{text!r} did not come after {self.output[since:]!r}")
        return len(self.output)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(seconds, 0))
        try:
            received = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other end is closed
            received = b""
        self.output += received.decode(errors="replace").replace("\r\n", "\n").replace("\a", "")
        return bool(received)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        while self._read(PATIENCE):
            pass
        self.code = self._process.wait(PATIENCE)
        os.close(self._master)
