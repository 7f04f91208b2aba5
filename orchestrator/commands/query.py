"""The command that answers SQL over a storage."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

import click

from orchestrator.commands.options import json_option, storage_option, warn
from orchestrator.errors import KdctlError, printable
from orchestrator.machine.paths import local

if TYPE_CHECKING:
    from orchestrator.results.query import QueryResult
    from orchestrator.storage.layout import Storage

_FORMATS = ("table", "csv", "tsv", "json", "parquet", "markdown")
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".parquet": "parquet", ".md": "markdown"}
_OPTION = re.compile(r"--?[A-Za-z][A-Za-z-]*(=.*)?", re.DOTALL)


class _Query(click.Command):
    """A command whose argument may begin with a comment of SQL, which would else be taken for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts SQL that begins with `--` where no option is looked for."""
        if "--" not in args:
            sql = [word for word in args if word.startswith("--") and not _OPTION.fullmatch(word)]
            args = [*(word for word in args if word not in sql), *(["--", *sql] if sql else [])]
        return super().parse_args(ctx, args)


@click.command(cls=_Query)
@click.argument("sql")
@storage_option
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), help="Default: what the name of --output ends with, else table."
)
@json_option
@click.option("--output", metavar="FILE", help="Write to a file, which is there whole or not at all.")
def query(sql: str, storage: str, form: str | None, as_json: bool, output: str | None) -> None:
    """Answer a SELECT over the views trials, epochs, summary and results; with - for SQL, one from stdin.

    \b
    trials   a row a trial, whatever its state, with the studies that it belongs to
    epochs   a row an epoch
    summary  a row a study, setting and metric: mean, std, n, 95 % interval over the seeds,
             and the paired difference to base on the same seeds
    results  the tables of `kdctl results`: a row a study and setting, accuracies side by side

    It is DuckDB's SQL; a query reads these views and nothing else, and works while a study runs.
    `DESCRIBE trials` lists the columns of a view. A table shows the first 100 rows, 6 digits of
    a float and 120 characters of a cell; the other formats have everything.

    \b
    Examples:
      kdctl query "FROM results"
      kdctl query "SELECT study, student, setting, n, mean, low, high, diff FROM summary WHERE metric = 'last_acc'"
      kdctl query "SELECT trial_id, seed, e.epoch, test_acc FROM epochs e JOIN trials USING (trial_id) ORDER BY ALL"
      kdctl query "SELECT trial_id, method, seed, failure, error FROM trials WHERE state = 'failed'"
      kdctl query "FROM epochs" --output epochs.parquet
    """
    from orchestrator.catalog import integrity
    from orchestrator.results.query import run_query
    from orchestrator.storage.layout import Storage

    form = _form(form, as_json, output)
    place = Storage.at(storage)
    target = None if output is None else _target(output, place)
    with run_query(place, _statement(sql)) as answer, _opened(target) as out:
        left_out = _write(answer, form, out, is_terminal=output is None and sys.stdout.isatty())
    if "epochs" in sql.lower():
        warn(integrity.lacking(place, look_for_weights=False))
    else:
        warn(integrity.foreign(place))
    if left_out:
        click.echo(f"… {left_out:,} more rows; --format csv has them all", err=True)


def _form(form: str | None, as_json: bool, output: str | None) -> str:
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} are two formats; give one of them")
    form = "json" if as_json else form
    if output is not None:
        return _form_of_file(form, output)
    found = form or "table"
    if found == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet is nothing for a terminal; add --output FILE, or a pipe")
    return found


def _form_of_file(form: str | None, output: str) -> str:
    """The format of a file, which holds the whole answer. Raises UsageError where its name has another."""
    suffix = PurePath(output).suffix.lower()
    by_name = _SUFFIXES.get(suffix)
    known = f"the known endings are {', '.join(_SUFFIXES)}"
    if form == "table":
        raise click.UsageError(f"a table is for reading, and leaves out what is too long for it; {known}")
    if form is None and by_name is None:
        got = f"ends in {suffix!r}" if suffix else "has no ending"
        raise click.UsageError(f"--output {printable(output)} {got}, which names no format; {known}; or add --format")
    if form and by_name not in (None, form):
        raise click.UsageError(f"--format {form} and --output {printable(output)} are two formats; give one of them")
    return form or by_name or ""


def _statement(sql: str) -> str:
    if sql != "-":
        return sql
    if sys.stdin.isatty():
        click.echo("type the query, and end it with Ctrl-D on a line of its own", err=True)
    # What is no UTF-8 stays recognisable, and is refused as any such query.
    return sys.stdin.buffer.read().decode(errors="surrogateescape")


@contextmanager
def _opened(target: Path | None) -> Iterator[IO[bytes]]:
    if target is None:
        out = sys.stdout.buffer
        yield out
        out.flush()
        return
    from orchestrator.storage.backend import Folder

    with Folder(target.parent).stage(target.name) as part, part.open("wb") as file:
        yield file


def _target(output: str, storage: Storage) -> Path:
    """Nothing is overwritten that is no plain file, and nothing is written among what trials have written."""
    target = local(output, "--output").absolute()
    got = None
    if not target.parent.is_dir():
        got = "its folder is not there; make it, or name another"
    elif target.exists() and not target.is_file():
        got = "it is no plain file; name another, or leave out --output for standard output"
    elif target.resolve().is_relative_to(Path(storage.backend.address).resolve()):
        got = "it is inside the storage, which queries only read; name one elsewhere"
    if got:
        raise KdctlError(f"--output {printable(str(target))} cannot be written: {got}")
    return target


def _write(answer: QueryResult, form: str, out: IO[bytes], is_terminal: bool) -> int:
    """Writes an answer, and gives the number of rows that a table leaves out."""
    from orchestrator.results import formats

    if form == "parquet":
        answer.write_parquet(out)
        return 0
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")  # whatever the locale says: it is data
    try:
        return formats.write(form, answer.heading, answer.columns(), text, is_terminal)
    finally:
        text.flush()
        text.detach()
