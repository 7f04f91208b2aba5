"""`kdctl query`: SQL over the results in a storage."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING

import click

from orchestrator.commands.shared.options import json_option, storage_option, warn
from orchestrator.errors import KdctlError
from orchestrator.machine.paths import local
from orchestrator.results.output_formats import QueryFormat
from orchestrator.text import printable

if TYPE_CHECKING:
    from orchestrator.results.query import QueryResult
    from orchestrator.storage.layout import Storage

_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".parquet": "parquet", ".md": "markdown"}
_OPTION = re.compile(r"--?[A-Za-z][A-Za-z-]*(=.*)?", re.DOTALL)


class _Query(click.Command):
    """A command whose argument may begin with an SQL comment (`--`), which Click would take for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Moves SQL that begins with `--` to the end, after a `--`."""
        if "--" not in args:
            sql = [word for word in args if word.startswith("--") and not _OPTION.fullmatch(word)]
            args = [*(word for word in args if word not in sql), *(["--", *sql] if sql else [])]
        return super().parse_args(ctx, args)


@click.command(cls=_Query)
@click.argument("sql")
@storage_option
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in QueryFormat]),
    help="Output format; by default given by the ending of --output, or else table.",
)
@json_option
@click.option("--output", metavar="FILE", help="Write to a file, either completely or not at all.")
def query(sql: str, storage: str, form: str | None, as_json: bool, output: str | None) -> None:
    """Run an SQL query over the views of a storage; SQL can be - for standard input.

    \b
    trials       one row per trial in any state, with the studies that it belongs to
    epochs       one row per epoch
    summary      one row per study, setting and metric: mean, std, n, 95 % interval over the seeds,
                 and the paired difference to base on the same seeds
    results      the tables of `kdctl results`: one row per study and setting, metrics as columns
    comparisons  every setting against base and against the others of its pair: p values, verdicts

    The SQL dialect is DuckDB's. A query can read only these views; it also works while a study is
    running. `DESCRIBE trials` lists the columns of a view. `--format table` shows at most 100 rows,
    6 digits of a float and 120 characters of a cell. `--format markdown` shows all rows and cells, but
    also 6 digits of a float; the other formats are complete.

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

    form = _choose_format(form, as_json, output)
    opened = Storage.at(storage)
    target = None if output is None else _find_target(output, opened)
    with run_query(opened, _read_statement(sql)) as answer, _open_output(target) as out:
        left_out = _write(answer, form, out, is_terminal=output is None and sys.stdout.isatty())
    if "epochs" in sql.lower():
        warn(integrity.find_missing(opened, look_for_weights=False))
    else:
        warn(integrity.find_foreign(opened))
    if left_out:
        click.echo(f"… {left_out:,} more rows; --format csv prints all", err=True)


def _choose_format(form: str | None, as_json: bool, output: str | None) -> str:
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} are two formats; give only one of them")
    form = "json" if as_json else form
    if output is not None:
        return _choose_file_format(form, output)
    found = form or "table"
    if found == "parquet" and sys.stdout.isatty():
        raise click.UsageError(
            "Parquet is binary and cannot be printed on a terminal; add --output FILE, or use a pipe"
        )
    return found


def _choose_file_format(form: str | None, output: str) -> str:
    """The format of an output file. Raises UsageError if its ending and `--format` disagree."""
    suffix = PurePath(output).suffix.lower()
    by_name = _SUFFIXES.get(suffix)
    known = f"expected an ending of {', '.join(_SUFFIXES)}"
    if form == "table":
        raise click.UsageError(f"the format table is shortened for reading and cannot be written to a file; {known}")
    if form is None and by_name is None:
        found = f"ends in {suffix!r}" if suffix else "has no ending"
        raise click.UsageError(f"--output {printable(output)} {found}, which names no format; {known}, or a --format")
    if form and by_name not in (None, form):
        raise click.UsageError(
            f"--format {form} does not fit the ending of --output {printable(output)}; change one of them"
        )
    return form or by_name or ""


def _read_statement(sql: str) -> str:
    if sql != "-":
        return sql
    if sys.stdin.isatty():
        click.echo("type the query, then press Ctrl-D on a new line", err=True)
    # Bytes that are not UTF-8 stay recognisable; such a query is refused like any other malformed one.
    return sys.stdin.buffer.read().decode(errors="surrogateescape")


@contextmanager
def _open_output(target: Path | None) -> Iterator[IO[bytes]]:
    if target is None:
        out = sys.stdout.buffer
        yield out
        out.flush()
        return
    from orchestrator.storage.backend import Folder

    with Folder(target.parent).stage(target.name) as part, part.open("wb") as file:
        yield file


def _find_target(output: str, storage: Storage) -> Path:
    """The path of `--output`. Raises KdctlError for anything but a new or plain file outside the storage."""
    target = local(output, "--output").absolute()
    reason = None
    if not target.parent.is_dir():
        reason = "its folder does not exist; create it, or name another one"
    elif target.exists() and not target.is_file():
        reason = "it is not a regular file; name another one, or omit --output for standard output"
    elif target.resolve().is_relative_to(Path(storage.backend.address).resolve()):
        reason = "it is inside the storage, which a query must not change; name a file elsewhere"
    if reason:
        raise KdctlError(f"--output {printable(str(target))} cannot be written: {reason}")
    return target


def _write(answer: QueryResult, form: str, out: IO[bytes], is_terminal: bool) -> int:
    """Writes an answer; returns the number of rows that the format table leaves out."""
    from orchestrator.results import formats

    if form == "parquet":
        answer.write_parquet(out)
        return 0
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")  # data is UTF-8 in any locale
    try:
        return formats.write(form, answer.heading, answer.columns(), text, is_terminal)
    finally:
        text.flush()
        text.detach()
