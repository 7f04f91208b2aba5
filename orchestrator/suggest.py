"""The nearest known word to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(got: object, known: Iterable[str]) -> str:
    """What to do about an unknown word: `did you mean …?`, or a plain `choose one of them`."""
    word = got[:100].lower() if isinstance(got, str) else ""  # comparing takes long for a text of a megabyte
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "choose one of them"
