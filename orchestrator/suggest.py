"""The nearest known word to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(got: object, known: Iterable[str]) -> str:
    """What to do about an unknown word: `did you mean …?`, or a plain `choose one of them`."""
    word = got[:100].lower() if isinstance(got, str) else ""  # comparing takes long for a text of a megabyte
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "choose one of them"


def nearest_file(path: Path) -> str:
    """What to do about a file that is not there: `did you mean …?` one like it in its folder, or `check the path`."""
    try:
        known = {
            entry.stem: entry for entry in path.parent.iterdir() if entry.suffix == path.suffix and entry.is_file()
        }
    except OSError:  # the folder is not there either
        return "check the path"
    close = difflib.get_close_matches(path.stem[:100], list(known), n=1)
    return f"did you mean {known[close[0]]}?" if close else "check the path"
