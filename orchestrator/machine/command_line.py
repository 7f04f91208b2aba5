"""The `kdctl` command line as this user can type it, for messages."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path


def format_command(*words: str) -> str:
    """A kdctl command that works in the user's shell: `kdctl` if that is on the PATH, else a path to it."""
    script = Path(sys.executable).with_name("kdctl")
    if not script.is_file():
        return " ".join((shlex.quote(sys.executable), "-m", "orchestrator", *words))
    on_path = shutil.which("kdctl")
    if on_path and Path(on_path).samefile(script):
        return " ".join(("kdctl", *words))
    with suppress(ValueError):
        script = script.relative_to(Path.cwd())
    typed = str(script) if len(script.parts) > 1 else f"./{script}"
    return " ".join((shlex.quote(typed), *words))
