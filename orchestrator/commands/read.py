"""Commands that read what a storage holds: results and teachers."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from orchestrator.commands.options import json_option, set_option, storage_option


@click.command()
@click.argument("file", type=click.Path(), required=False)
@storage_option
@set_option
@click.option(
    "--format", "form", type=click.Choice(("table", "markdown", "csv", "json")), default="table", show_default=True
)
def results(file: str | None, storage: str, settings: Sequence[str], form: str) -> None:
    """Print the result tables of a study FILE, or of everything in the storage."""
    from orchestrator import results as stored
    from orchestrator.launch import look
    from orchestrator.report import render
    from orchestrator.storage import Storage

    wanted = None if file is None else [trial.trial_id for trial in look(file, storage, settings).trials]
    rows = stored.read_trials(Storage.at(storage), wanted)
    if wanted is None:
        rows.sort(key=lambda row: (row.study, row.no))
    if not rows:
        click.echo(f"no trials in {storage}; launch a study, or name another storage with --storage", err=True)
    click.echo(render(rows, form), nl=False)


@click.group(invoke_without_command=True)
@storage_option
@json_option
@click.pass_context
def teachers(context: click.Context, storage: str, as_json: bool) -> None:
    """List the cached teachers, or verify one of them."""
    context.obj = storage
    if context.invoked_subcommand is None:
        _list_teachers(storage, as_json)


def _list_teachers(storage: str, as_json: bool) -> None:
    from orchestrator.inventory import list_teachers
    from orchestrator.report import aligned
    from orchestrator.storage import Storage

    found = list_teachers(Storage.at(storage))
    if as_json:
        click.echo(json.dumps([teacher.to_json() for teacher in found], indent=1))
        return
    header = ("teacher_id", "model", "dataset", "acc", "size", "tables", "used by")
    rows = [
        (
            teacher.teacher_id, teacher.row.student, teacher.row.dataset, f"{teacher.row.last_acc:.2f}",
            f"{teacher.bytes / 1e6:,.1f} MB", ", ".join(key.name for key in teacher.tables) or "-",
            ", ".join(f"{count} of {study}" for study, count in teacher.users.items()) or "-",
        )
        for teacher in found
    ]  # fmt: skip
    click.echo(aligned(header, rows))


@teachers.command()
@click.argument("teacher_id")
@click.option("--storage", metavar="DIR", help="Folder of trials, teachers and results, as for `kdctl teachers`.")
@click.pass_obj
def verify(outer: str, teacher_id: str, storage: str | None) -> None:
    """Ask teacher TEACHER_ID live about random views and compare its tables."""
    from orchestrator.inventory import verify_teacher
    from orchestrator.storage import Storage

    verdicts = verify_teacher(teacher_id, Storage.at(storage or outer))
    for verdict in verdicts:
        click.echo(
            f"{verdict.table.name}: says what the teacher says, largest difference {verdict.largest_difference:.3g}"
        )
    if not verdicts:
        click.echo("this teacher has no table, so there is nothing to compare; its students asked it live")
