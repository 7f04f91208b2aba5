"""SQL over what a storage holds: the only import of DuckDB, which sees some views in memory and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import duckdb

from orchestrator import parquet
from orchestrator.errors import KdctlError
from orchestrator.results.formats import Heading
from orchestrator.results.store import (
    EPOCH_COLUMNS,
    TRIAL_COLUMNS,
    read_epochs_table,
    read_trials,
    read_trials_table,
    to_table,
    types_of,
)
from orchestrator.results.summary import RESULT_COLUMNS, SUMMARY_COLUMNS, summarize_metrics, summarize_results
from orchestrator.storage.layout import Storage
from orchestrator.study.stored_studies import Membership
from orchestrator.text import printable

# view → its columns: name → (type, meaning).
VIEWS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "trials": {**TRIAL_COLUMNS, "studies": ("strings", "the studies whose last plans want the trial, by name")},
    "epochs": EPOCH_COLUMNS,
    "summary": SUMMARY_COLUMNS,
    "results": RESULT_COLUMNS,
}
MEMORY = "2GiB"  # for one query, beside the views that it reads

_VIEWS = ", ".join(VIEWS)
_SQL_TYPES = {
    "string": "VARCHAR",
    "strings": "VARCHAR[]",
    "int": "BIGINT",
    "float": "DOUBLE",
    "timestamp": "TIMESTAMPTZ",
}
_BATCH = 50_000  # rows that are handed on at once
# DuckDB opens no file, loads nothing, asks nobody, and reads no variable of this program. One after another, as
# nothing of this kind can be set once it may not reach outside.
_SETTINGS = (
    "enable_progress_bar = false",  # it would stand among the data
    "temp_directory = ''",
    f"memory_limit = '{MEMORY}'",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "allow_community_extensions = false",
    "allow_persistent_secrets = false",
    "python_enable_replacements = false",
    "TimeZone = 'UTC'",
    "enable_external_access = false",
)


class QueryError(KdctlError):
    """A query that is no single SELECT, or that cannot be answered."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query gives: its columns by name, and their values batch after batch, as DuckDB finds them."""

    schema: Any
    batches: Iterator[parquet.Batch]

    @property
    def heading(self) -> Heading:
        """Its columns."""
        return Heading(self.schema.names, [parquet.is_number(field.type) for field in self.schema])

    def columns(self) -> Iterator[list[list[Any]]]:
        """The values of each batch as Python's, column by column."""
        for batch in self.batches:
            yield [self._values(name, column) for name, column in zip(self.schema.names, batch.columns, strict=True)]

    def write_parquet(self, sink: IO[bytes]) -> None:
        """Writes all of it as one Parquet file. Raises QueryError for a type that Parquet has not."""
        try:
            parquet.write_parquet(sink, self.schema, self.batches)
        except parquet.Error as error:
            raise QueryError(f"Parquet cannot hold this ({printable(str(error))}); cast it to VARCHAR") from None

    def _values(self, name: str, column: Any) -> list[Any]:
        try:
            return parquet.values(column)
        except parquet.Error as error:
            raise QueryError(
                f"column {printable(name)} cannot be shown ({printable(str(error))}); cast it to VARCHAR"
            ) from None


@contextmanager
def run_query(storage: Storage, sql: str) -> Iterator[QueryResult]:
    """The answer of a storage to one SELECT over `VIEWS`; only those that it mentions are read.

    Raises QueryError for another statement and for what DuckDB complains of, StorageError that names a damaged file.
    """
    # DuckDB works in a thread of its own: Ctrl-C reaches the main one, and there only between two lines of Python.
    with closing(duckdb.connect(":memory:")) as connection, ThreadPoolExecutor(1) as worker:
        _lock(connection)
        _refuse_all_but_select(connection, sql)
        _create_views(connection, storage, _find_views(connection, sql))
        try:
            reader = _run(worker, lambda: connection.sql(sql).to_arrow_reader(_BATCH))
            schema = parquet.rename_columns(reader.schema, _make_unique(reader.schema.names))
            batches = iter(lambda: _run(worker, lambda: next(reader, None)), None)
            yield QueryResult(schema, (batch.rename_columns(schema.names) for batch in batches))
        except BaseException:
            connection.interrupt()
            raise


def _run(worker: ThreadPoolExecutor, question: Callable[[], Any]) -> Any:
    try:
        return worker.submit(question).result()
    except (duckdb.Error, parquet.Error, OSError, RuntimeError) as error:  # Arrow hands on DuckDB's as its own
        raise QueryError(_explain(error)) from None


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    for setting in _SETTINGS:
        connection.execute(f"SET {setting}")


def _refuse_all_but_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        sql.encode()
        kinds = [statement.type.name for statement in connection.extract_statements(sql)]
    except UnicodeError:
        raise QueryError("the query is no text in UTF-8; write it so") from None
    except duckdb.Error as error:
        raise QueryError(_explain(error)) from None
    if kinds == ["SELECT"]:
        return
    found = f"{len(kinds)} statements" if len(kinds) != 1 else f"a statement of kind {kinds[0]}"
    if kinds == ["MULTI"]:
        found = "a PIVOT without its values, which PIVOT trials ON method IN ('base', 'st') USING avg(acc) has"
    raise QueryError(f"found {found}; expected one SELECT over the views {_VIEWS}: a query only reads")


def _find_views(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """The views that a statement reads. To be asked while there are none: DuckDB tells the names that it misses."""
    try:
        names = connection.get_table_names(sql)
    except duckdb.Error:
        return set(VIEWS)  # to run it will say what is wrong
    return {name.lower() for name in names} & set(VIEWS)


def _create_views(connection: duckdb.DuckDBPyConnection, storage: Storage, wanted: set[str]) -> None:
    """Makes the views. One that is not wanted has its columns, and refuses to be read rather than look empty."""
    tables = _read_tables(storage, wanted)
    for name, columns in VIEWS.items():
        if name in tables:
            connection.register(name, tables[name])
        else:
            connection.execute(_unread_view(name, types_of(columns)))
    connection.execute("SET lock_configuration = true")


def _read_tables(storage: Storage, wanted: set[str]) -> dict[str, parquet.Table]:
    tables: dict[str, parquet.Table] = {}
    if "epochs" in wanted:  # before the trials, so that in a study that runs every epoch has its trial
        tables["epochs"] = read_epochs_table(storage)
    if not wanted & {"trials", "summary", "results"}:
        return tables
    membership = Membership.of(storage)  # before the rows, which may belong to a study that begins meanwhile
    if wanted & {"summary", "results"}:
        rows = read_trials(storage)
        tables["trials"] = _add_studies(to_table(rows), membership)
        for name, describe in (("summary", summarize_metrics), ("results", summarize_results)):
            lines = (line for part in membership.split(rows) for line in describe(part.rows, part.study))
            tables[name] = parquet.table_of(types_of(VIEWS[name]), lines)
    else:
        tables["trials"] = _add_studies(read_trials_table(storage), membership)
    return tables


def _add_studies(trials: parquet.Table, membership: Membership) -> parquet.Table:
    """The trials, each with the studies that it belongs to."""
    held = (parquet.values(trials.column(name)) for name in ("trial_id", "study"))
    return parquet.append_column(
        trials, "studies", "strings", [membership.studies(*own) for own in zip(*held, strict=True)]
    )


def _unread_view(name: str, types: Mapping[str, str]) -> str:
    # Each column is made from the complaint, so that no optimiser finds the view empty without asking for it.
    columns = ", ".join(f'CAST(e AS {_SQL_TYPES[kind]}) AS "{column}"' for column, kind in types.items())
    complaint = f"{name} was not read; name it in the statement itself, not in a text that it runs"
    return f"CREATE VIEW {name} AS SELECT {columns} FROM (SELECT error('{complaint}') AS e) WHERE e IS NULL"  # noqa: S608 - ours


def _make_unique(names: Sequence[str]) -> list[str]:
    """A name for each column of its own: acc, acc_1, …"""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in count(1))
        taken.append(name if name not in taken else next(new for new in numbered if new not in {*taken, *names}))
    return taken


def _explain(error: Exception) -> str:
    """DuckDB's complaint as ours: safe to show, and without advice that nobody can follow here."""
    text = re.split(r"\n\n(?:Possible solutions|Please try installing)", str(error))[0].strip()
    shown = "\n".join(map(printable, text.splitlines()))
    if "Permission Error" in text or text.endswith("extension."):
        return f"a query reads the views {_VIEWS} alone: no file, no network, no extension ({shown})"
    if "Out of Memory" in text:
        return f"the query needs more than {MEMORY} of memory; ask for fewer rows or columns, or filter them first"
    if text.startswith("Catalog Error: Table"):
        return f"{shown}\nthe views are {_VIEWS}"
    return shown
