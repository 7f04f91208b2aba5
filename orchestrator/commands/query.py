"""The command that answers SQL over a storage."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

import click

from orchestrator.commands.options import json_option, storage_option, warn
from orchestrator.errors import KdctlError, printable

if TYPE_CHECKING:
    from orchestrator.query import Answer
    from orchestrator.storage import Storage

_FORMATS = ("table", "csv", "json", "parquet", "markdown")
_SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".md": "markdown"}


@click.command()
@click.argument("sql")
@storage_option
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), help="Default: what the name of --output ends with, else table."
)
@json_option
@click.option("--output", metavar="FILE", help="Write to a file, which is there whole or not at all.")
def query(sql: str, storage: str, form: str | None, as_json: bool, output: str | None) -> None:
    """Answer a SELECT over the views trials, epochs and summary; with - for SQL, one from standard input.

    \b
    trials   a row a trial, whatever its state
    epochs   a row an epoch
    summary  a row a setting and metric: mean, std, n, 95 % interval over the seeds,
             and the paired difference to base on the same seeds

    It is DuckDB's SQL; a query reads these views and nothing else, and works while a study runs.
    `DESCRIBE trials` lists the columns of a view. A table shows the first 100 rows, 6 digits of
    a float and 60 characters of a cell; csv, json and parquet have everything.

    \b
    Examples:
      kdctl query "SELECT method, avg(acc), stddev(acc), count(*) AS n FROM trials GROUP BY method"
      kdctl query "SELECT student, setting, n, mean, low, high, diff FROM summary WHERE metric = 'last_acc'"
      kdctl query "SELECT method, e.epoch, avg(test_acc) FROM epochs e JOIN trials USING (trial_id) GROUP BY ALL"
      kdctl query "SELECT trial_id, method, seed, failure, error FROM trials WHERE state = 'failed'"
      kdctl query "FROM epochs" --output epochs.parquet
    """
    from orchestrator import soundness
    from orchestrator.query import asked
    from orchestrator.storage import Storage

    form = _form(form, as_json, output)
    place = Storage.at(storage)
    with asked(place, _statement(sql)) as answer, _opened(output, place) as out:
        left_out = _write(answer, form, out, is_terminal=output is None and sys.stdout.isatty())
    if "epochs" in sql.lower():
        warn(soundness.lacking(place, look_for_weights=False))
    else:
        warn(soundness.foreign(place))
    if left_out:
        click.echo(f"… {left_out:,} more rows; --format csv has them all", err=True)


def _form(form: str | None, as_json: bool, output: str | None) -> str:
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} are two formats; give one of them")
    found = "json" if as_json else form or _SUFFIXES.get(PurePath(output or "").suffix.lower(), "table")
    if found == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("Parquet is nothing for a terminal; add --output FILE, or a pipe")
    return found


def _statement(sql: str) -> str:
    if sql != "-":
        return sql
    if sys.stdin.isatty():
        click.echo("type the query, and end it with Ctrl-D on a line of its own", err=True)
    # What is no UTF-8 stays recognisable, and is refused as any such query.
    return sys.stdin.buffer.read().decode(errors="surrogateescape")


@contextmanager
def _opened(output: str | None, storage: Storage) -> Iterator[IO[bytes]]:
    if output is None:
        out = sys.stdout.buffer
        yield out
        out.flush()
        return
    from orchestrator.places import Folder

    target = Path(output).absolute()
    _refuse(target, storage)
    with Folder(target.parent).building(target.name) as part, part.open("wb") as file:
        yield file


def _refuse(target: Path, storage: Storage) -> None:
    """Nothing is overwritten that is no plain file, and nothing is written among what trials have written."""
    got = None
    if not target.parent.is_dir():
        got = "its folder is not there; make it, or name another"
    elif target.exists() and not target.is_file():
        got = "it is no plain file; name another, or leave out --output for standard output"
    elif target.resolve().is_relative_to(Path(storage.place.address).resolve()):
        got = "it is inside the storage, which queries only read; name one elsewhere"
    if got:
        raise KdctlError(f"--output {printable(str(target))} cannot be written: {got}")


def _write(answer: Answer, form: str, out: IO[bytes], is_terminal: bool) -> int:
    """Writes an answer, and gives the number of rows that a table leaves out."""
    from orchestrator import tabular

    if form == "parquet":
        answer.write_parquet(out)
        return 0
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")  # whatever the locale says: it is data
    try:
        return tabular.write(form, answer.heading, answer.columns(), text, is_terminal)
    finally:
        text.flush()
        text.detach()
