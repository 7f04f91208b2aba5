"""Text and tables in Markdown: whatever a name or an error holds is shown, not obeyed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.text import printable

# What Markdown, its tables and its links would take for their own, but not the _ and : of names and messages.
_SPECIAL = re.compile(r"[\\`*\[\]<>|&#~@$!]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escaped(text: str) -> str:
    """Any text on one line, shown as it is by Markdown: what has a meaning there becomes an entity."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", printable(" ".join(text.split())))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
