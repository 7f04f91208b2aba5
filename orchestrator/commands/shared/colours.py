"""Colours for words that state a level or a state, on a terminal and unless NO_COLOR is set."""

from __future__ import annotations

import os
import re

import click

_BAD, _WARNING, _GOOD = "red", "yellow", "green"
_STYLES = {
    **{"ok": _GOOD, "finished": _GOOD},
    **{"warning": _WARNING, "unfinished": _WARNING, "stopped": _WARNING, "skipped": _WARNING},
    **{"bad": _BAD, "failed": _BAD},
}
_LEVEL = re.compile(r"^(ok|warning|bad)\b", re.MULTILINE)  # first in a line of the doctor
_STATE = re.compile(r"(?<=  )(unfinished|failed|finished)$", re.MULTILINE)  # last in a line of a plan
_OUTCOME = re.compile(r"^(\w{12} (?:.* )?seed \d+ )(stopped|skipped|failed)\b", re.MULTILINE)  # a line of the results
_BEST = re.compile(r"\S+(?: ± \S+)? \(\d+\)(?= \*)")  # a cell of the results that is the best of its column
_GUESS = re.compile(r"[Dd]id you mean [^?\n]+\?")


def colour() -> bool | None:
    """The `color` argument for `click.echo`: False for no colours; None to let it detect a terminal.

    https://no-color.org: NO_COLOR counts unless it is empty.
    """
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def check_levels(text: str) -> str:
    """The doctor's table, with coloured levels."""
    return _LEVEL.sub(_styled, text)


def states(text: str) -> str:
    """A plan or results, with coloured states and the best in bold."""
    text = _BEST.sub(lambda match: click.style(match[0], bold=True), text)
    return _OUTCOME.sub(lambda match: match[1] + _paint(match[2]), _STATE.sub(_styled, text))


def guesses(text: str) -> str:
    """An error message, with its suggestion in bold."""
    return _GUESS.sub(lambda match: click.style(match[0], bold=True), text)


def _styled(match: re.Match[str]) -> str:
    return _paint(match[1])


def _paint(word: str) -> str:
    return click.style(word, fg=_STYLES[word])
