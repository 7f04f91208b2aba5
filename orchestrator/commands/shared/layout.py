"""The layout of `kdctl --help`: the commands in sections, by what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from orchestrator.text import nearest

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Start": ("init", "check", "plan", "launch", "stop"),
    "Watch": ("status", "logs", "dashboard"),
    "Read": ("results", "query", "report", "teachers"),
    "Cluster": ("up", "down"),
    "Care": ("clean", "doctor", "schema", "completion"),
}
REST = "Other"  # commands that are in no section
_LONGEST = 200  # characters of a command's first sentence, so that Click never shortens it

# What `kdctl` without a command prints: the first three commands for a new user.
WELCOME = """\
kdctl runs knowledge-distillation studies: one YAML file in, a finished study out.

  kdctl init                       writes experiments.yaml, a small study that is ready to run
  kdctl launch experiments.yaml    trains it in about a minute
  kdctl report experiments.yaml    writes report.html, a page to read and to share

`kdctl --help` lists all commands, `kdctl COMMAND --help` explains one."""


class Group(click.Group):
    """A group that suggests the nearest command for a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names. Raises UsageError if there is none."""
        word = args[0]
        if self.get_command(ctx, word) or word.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"No such command '{word}'; {nearest(word, self.commands)}", ctx)


class Sections(Group):
    """The group of all commands."""

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """Each section that has commands, with the names of its commands."""
        named = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in sorted(self.commands) if name not in named)
        for title, names in {**SECTIONS, REST: others}.items():
            if present := [name for name in names if name in self.commands]:
                yield title, present

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands in the order of the sections."""
        return [name for _, names in self.sections() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one list per section."""
        width = max(map(len, self.commands), default=0)
        for title, names in self.sections():
            rows = [(name.ljust(width), self.commands[name].get_short_help_str(_LONGEST)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)
