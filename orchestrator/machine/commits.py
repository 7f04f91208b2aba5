"""The git commit that contains a file exactly as it is now."""

from __future__ import annotations

import subprocess
from pathlib import Path


def of_file(file: Path) -> str | None:
    """The commit checked out in the repository of a file, if it contains the file exactly as it is now.

    None for a file that is modified or not committed, for a link, in a submodule, and if git fails.
    """
    if file.is_symlink() or not file.is_file():
        return None  # git stores where a link points, not what is there
    folder, name = file.absolute().parent, f"./{file.name}"
    stored = _run_git(folder, "rev-parse", "--verify", f"HEAD:{name}")
    if not stored or stored != _run_git(folder, "hash-object", "--", name):
        return None
    if _run_git(folder, "rev-parse", "--show-superproject-working-tree") != "":
        return None
    return of_folder(folder)


def of_folder(folder: Path) -> str | None:
    """The commit checked out in the repository of a folder; None outside a repository."""
    return _run_git(folder, "rev-parse", "HEAD")


def _run_git(folder: Path, *words: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *words]
        found = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
