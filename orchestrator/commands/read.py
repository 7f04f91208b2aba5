"""Commands that read what a storage holds: results and teachers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.commands import colours, completing
from orchestrator.commands.layout import Group
from orchestrator.commands.options import json_option, set_option, storage_option, study_argument, warn

if TYPE_CHECKING:
    from orchestrator.catalog.lookup import Found
    from orchestrator.storage.layout import Storage


@click.command()
@study_argument
@storage_option
@set_option
@click.option(
    "--format", "form", type=click.Choice(("table", "markdown", "csv", "json")), default="table", show_default=True,
    help="How to print them.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--runs", is_flag=True, help="Also list the single runs below each table.")
def results(study: str | None, storage: str, settings: Sequence[str], form: str, as_json: bool, runs: bool) -> None:
    """Print the result tables of a STUDY, or of every study in the storage.

    STUDY is a study file, or the name of a study that was launched with this storage. A table has a
    line for each setting: mean and sample standard deviation over its n finished runs, which differ
    in their seeds alone. acc is the best epoch's test accuracy in %, picked on the test set; the
    last epoch's is not picked, and neither is the selected one, from the epoch that was best on
    held-out images. The difference is that to base on the same seeds. json and markdown hold the
    single runs too, csv has a row for each run and no means.

    \b
    Examples:
      kdctl results
      kdctl results experiments.yaml --runs
      kdctl results my-digits --format markdown > results.md
      kdctl results --json | python -m json.tool
    """
    from orchestrator import columns
    from orchestrator.catalog import integrity, lookup
    from orchestrator.results import store as stored
    from orchestrator.results.tables import render_studies
    from orchestrator.storage.layout import Storage
    from orchestrator.study.stored_studies import Membership, StudyRows

    place = Storage.at(storage)
    found = None if study is None else lookup.study(place, study, settings)
    membership = None if found else Membership.of(place)  # before the rows, of which there may soon be more
    rows = stored.read_trials(place, found.trial_ids if found else None)
    warn(integrity.lacking(place, found.trial_ids if found else None))
    if not rows:
        click.echo(_nothing(storage, place, found), err=True)
    parts = membership.split(rows) if membership else [StudyRows(found.name, tuple(rows))] if found and rows else []
    form = "json" if as_json else form
    text = render_studies(parts, form, runs=runs, width=columns.width_of(sys.stdout))
    click.echo(colours.states(text) if form == "table" else text, nl=False)


def _nothing(storage: str, place: Storage, found: Found | None) -> str:
    from orchestrator.catalog import lookup

    reason = lookup.other_settings(place, found) if found else None
    if found and reason:
        return f"{reason}; `kdctl results {found.name}` prints those of its last launch"
    return f"no trials in {storage}; launch a study, or name another storage with --storage"


@click.group(cls=Group, invoke_without_command=True)
@storage_option
@json_option
@click.pass_context
def teachers(context: click.Context, storage: str, as_json: bool) -> None:
    """List the cached teachers, or verify one of them.

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

    place = Storage.at(storage)
    found = list_teachers(place)
    warn(integrity.foreign(place))
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
        click.echo(f"no teachers in {storage}; launch a study, or name another storage with --storage", err=True)


@teachers.command()
@click.argument("teacher_id", shell_complete=completing.teachers)
@click.option(
    "--storage", metavar="PLACE", shell_complete=completing.folders,
    help="Folder or bucket of trials, teachers and results, as for `kdctl teachers`.",
)  # fmt: skip
@json_option
@click.pass_obj
def verify(outer: tuple[str, bool], teacher_id: str, storage: str | None, as_json: bool) -> None:
    """Ask teacher TEACHER_ID live about random views and compare its tables.

    The beginning of its id is enough. Ends with 1 where a table does not say what the teacher says.

    \b
    Examples:
      kdctl teachers verify 1f3a
      kdctl teachers verify 1f3a --json
    """
    from orchestrator.storage.layout import Storage
    from orchestrator.teachers.inventory import verify_teacher

    verdicts = verify_teacher(teacher_id, Storage.at(storage or outer[0]))
    if as_json or outer[1]:
        facts = [
            {"table": verdict.table.name, "largest_difference": verdict.largest_difference} for verdict in verdicts
        ]
        click.echo(json.dumps(facts, indent=1))
        return
    for verdict in verdicts:
        click.echo(
            f"{verdict.table.name}: says what the teacher says, largest difference {verdict.largest_difference:.3g}"
        )
    if not verdicts:
        click.echo("this teacher has no table, so there is nothing to compare; its students asked it live", err=True)
