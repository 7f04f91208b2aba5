"""Markdown for every command: whatever a name or an error contains is shown, and has no effect."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.text import printable

# What Markdown, its tables and its links would take for their own, but not the _ and : of names and messages. Brackets
# around two numbers are an interval.
_INTERVAL = r"\[[+−-]?[\d.]+, [+−-]?[\d.]+\](?![(\[:])"
_SPECIAL = re.compile(rf"({_INTERVAL})|[\\`*\[\]<>|&#~@$!]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escape(text: str) -> str:
    """Any text as one line that Markdown shows as it is: a character with a meaning there becomes an entity."""
    return _SPECIAL.sub(lambda found: found[1] or f"&#{ord(found[0])};", printable(" ".join(text.split())))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool] = ()) -> str:
    """A table, whose cells are Markdown already; columns of numbers are aligned to the right."""
    rule = ["---:" if number else "---" for number in is_number or [False] * len(header)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])
