"""`kdctl teachers`: the cached teachers, and whether their tables are correct."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from orchestrator.commands.shared import completion
from orchestrator.commands.shared.layout import Group
from orchestrator.commands.shared.options import json_option, storage_option, warn

if TYPE_CHECKING:
    pass


@click.group(cls=Group, invoke_without_command=True)
@storage_option
@json_option
@click.pass_context
def teachers(context: click.Context, storage: str, as_json: bool) -> None:
    """List the cached teachers, or verify one of them.

    A teacher is a finished trial whose weights, and often a table of its outputs, are in the storage.

    \b
    Examples:
      kdctl teachers
      kdctl teachers --storage /mnt/shared/runs --json
    """
    context.obj = storage, as_json
    if context.invoked_subcommand is None:
        _list_teachers(storage, as_json)


def _list_teachers(storage: str, as_json: bool) -> None:
    from orchestrator.catalog import integrity
    from orchestrator.columns import table, width_of
    from orchestrator.storage.layout import Storage
    from orchestrator.study import labels
    from orchestrator.teachers.inventory import list_teachers

    opened = Storage.at(storage)
    found = list_teachers(opened)
    warn(integrity.find_foreign(opened))
    if as_json:
        click.echo(json.dumps([teacher.to_json() for teacher in found], indent=1))
        return
    header = ("teacher_id", "model", "setting", "dataset", "seed", "acc", "last", "size", "tables", "used by")
    rows = [
        (
            teacher.teacher_id, teacher.row.student, labels.of_row(teacher.row), teacher.row.dataset,
            str(teacher.row.seed), f"{teacher.row.acc:.2f}", f"{teacher.row.last_acc:.2f}",
            f"{teacher.bytes / 1e6:,.1f} MB", ", ".join(key.name for key in teacher.tables) or "-",
            ", ".join(f"{count} of {study}" for study, count in teacher.users.items()) or "-",
        )
        for teacher in found
    ]  # fmt: skip
    click.echo(table(header, rows, width_of(sys.stdout)))
    if not found:
        click.echo(f"no teachers in {storage}; launch a study first, or name another storage with --storage", err=True)


@teachers.command()
@click.argument("teacher_id", shell_complete=completion.teachers)
@click.option(
    "--storage", metavar="LOCATION", shell_complete=completion.folders,
    help="Folder or bucket with trials, teachers and results; default: that of `kdctl teachers`.",
)  # fmt: skip
@json_option
@click.pass_obj
def verify(outer: tuple[str, bool], teacher_id: str, storage: str | None, as_json: bool) -> None:
    """Run teacher TEACHER_ID on random views and compare its outputs with its stored tables.

    The beginning of the id is enough. The exit code is 1 if a table differs from the teacher.

    \b
    Examples:
      kdctl teachers verify 1f3a
      kdctl teachers verify 1f3a --json
    """
    from orchestrator.storage.layout import Storage
    from orchestrator.teachers.inventory import verify_teacher

    checks = verify_teacher(teacher_id, Storage.at(storage or outer[0]))
    if as_json or outer[1]:
        facts = [{"table": check.table.name, "largest_difference": check.largest_difference} for check in checks]
        click.echo(json.dumps(facts, indent=1))
        return
    for check in checks:
        click.echo(f"{check.table.name}: matches the teacher, largest difference {check.largest_difference:.3g}")
    if not checks:
        click.echo("this teacher has no table, so there is nothing to compare; its students used it live", err=True)
