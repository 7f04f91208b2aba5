"""Writes what the program prints into the docs, between `<!-- printed: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import click

import losses
from orchestrator import cli, keys, results, schema, summary
from orchestrator.keys import Key

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/columns.md")
SCHEMA = "docs/study.schema.json"
_BLOCK = re.compile(r"(<!-- printed: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _key_table(known: Mapping[str, Key]) -> str:
    rows = [f"| `{name}` | {key.default_text()} | {key.doc} |" for name, key in known.items()]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _method_table() -> str:
    rows = []
    for name, method in losses.METHODS.items():
        options = ", ".join(f"`{option}: {facts.default}`" for option, facts in method.options.items()) or "-"
        rows.append(f"| `{name}` | {'yes' if method.has_teacher else 'no'} | {method.doc} | {options} |")
    return "\n".join(["| method | teacher | loss | options with their defaults |", "|---|---|---|---|", *rows])


def _column_table(columns: Mapping[str, tuple[str, str]]) -> str:
    rows = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in columns.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def _command_table() -> str:
    rows = []
    for name, command in sorted(cli.cli.commands.items()):
        arguments = " ".join(
            f"[{p.human_readable_name}]" if not p.required else p.human_readable_name
            for p in command.params
            if isinstance(p, click.Argument)
        )
        rows.append(f"| `{f'kdctl {name} {arguments}'.strip()}` | {command.get_short_help_str(limit=200)} |")
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


_PRINTERS: Mapping[str, Callable[[], str]] = {
    "commands": _command_table,
    "recipe-keys": lambda: _key_table(keys.RECIPE_KEYS),
    "experiment-keys": lambda: _key_table(keys.STUDENT_KEYS),
    "teacher-keys": lambda: _key_table(keys.TEACHER_KEYS),
    "resource-keys": lambda: _key_table(keys.RESOURCE_KEYS),
    "methods": _method_table,
    "trial-columns": lambda: _column_table(results.TRIAL_COLUMNS),
    "epoch-columns": lambda: _column_table(results.EPOCH_COLUMNS),
    "summary-columns": lambda: _column_table(summary.SUMMARY_COLUMNS),
}


def printed(text: str) -> str:
    """A page with every block printed anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{_PRINTERS[match[2]]()}\n{match[3]}", text)


def schema_text() -> str:
    """What `kdctl schema` prints."""
    return json.dumps(schema.study_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(printed((ROOT / page).read_text()))
    (ROOT / SCHEMA).write_text(schema_text())
