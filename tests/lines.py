"""Lines of a shell in help and docs: the calls of `kdctl` in them, and whether it would accept them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from orchestrator.cli import cli

_END = frozenset("|><&;")


def calls(line: str) -> Iterator[list[str]]:
    """The words of each call of `kdctl` in a line, without its name; comments, pipes and files are left out."""
    for inner in re.findall(r"\$\((kdctl [^)]*)\)", line):
        yield from calls(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|><&;")
    lexer.whitespace_split = True
    words: list[str] | None = None
    for word in lexer:
        if set(word) <= _END:
            if words is not None:
                yield words
            words = None
        elif words is not None:
            words.append(word)
        elif word == "kdctl":
            words = []
    if words is not None:
        yield words


def understood(words: list[str]) -> click.Context:
    """The context that Click makes of a call. Raises click.UsageError for what does not exist; runs nothing."""
    command: click.Command = cli
    context: click.Context | None = None
    name, rest = "kdctl", list(words)
    while True:
        context = command.make_context(name, rest, parent=context)
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not rest:
            return context
        found, inner, rest = command.resolve_command(context, rest)
        assert found and inner
        name, command = found, inner


def exists(words: list[str]) -> bool:
    """Whether a call, perhaps one that leaves out what it needs, names commands and options that exist."""
    try:
        understood(words)
    except click.exceptions.Exit:  # --help, --version
        return True
    except click.MissingParameter:
        return True
    except click.UsageError:
        return False
    return True
