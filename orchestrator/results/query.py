"""SQL over the results in a storage: the only import of DuckDB, which reads some views in memory and nothing else."""

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
from orchestrator.records import TrialRecord
from orchestrator.results.evidence.comparisons import COMPARISON_COLUMNS, summarize_comparisons
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
    "comparisons": COMPARISON_COLUMNS,
}
# view → what computes its rows from those of a study.
_SUMMARIES: Mapping[str, Callable[[Sequence[TrialRecord], str | None], Iterator[dict[str, Any]]]] = {
    "summary": summarize_metrics,
    "results": summarize_results,
    "comparisons": summarize_comparisons,
}
MEMORY = "2GiB"  # for one query, in addition to the views that it reads

_VIEWS = ", ".join(VIEWS)
_SQL_TYPES = {
    "string": "VARCHAR",
    "strings": "VARCHAR[]",
    "int": "BIGINT",
    "float": "DOUBLE",
    "timestamp": "TIMESTAMPTZ",
}
_BATCH = 50_000  # rows per batch of a result
# DuckDB must open no file, load no extension, use no network, and read no variable of this program. The last setting
# comes last, because the others cannot be changed after it.
_SETTINGS = (
    "enable_progress_bar = false",  # it would be mixed with the data
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
    """A query that is not a single SELECT, or that fails."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The result of a query: its columns by name, and their values batch after batch, as DuckDB computes them."""

    schema: Any
    batches: Iterator[parquet.Batch]

    @property
    def heading(self) -> Heading:
        """Its columns."""
        return Heading(self.schema.names, [parquet.is_number(field.type) for field in self.schema])

    def columns(self) -> Iterator[list[list[Any]]]:
        """The values of each batch as Python values, column by column."""
        for batch in self.batches:
            yield [self._values(name, column) for name, column in zip(self.schema.names, batch.columns, strict=True)]

    def write_parquet(self, sink: IO[bytes]) -> None:
        """Writes the result as one Parquet file. Raises QueryError for a type that Parquet does not have."""
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
    """Runs one SELECT over `VIEWS` on a storage; reads only the views that it names.

    Raises QueryError for other statements and for errors of DuckDB, StorageError that names a damaged file.
    """
    # DuckDB runs in a separate thread: Ctrl-C reaches only the main thread, and only between two Python instructions.
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
    except (duckdb.Error, parquet.Error, OSError, RuntimeError) as error:  # Arrow raises DuckDB's errors as its own
        raise QueryError(_explain(error)) from None


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    for setting in _SETTINGS:
        connection.execute(f"SET {setting}")


def _refuse_all_but_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        sql.encode()
        kinds = [statement.type.name for statement in connection.extract_statements(sql)]
    except UnicodeError:
        raise QueryError("the query is not valid UTF-8; save it as UTF-8") from None
    except duckdb.Error as error:
        raise QueryError(_explain(error)) from None
    if kinds == ["SELECT"]:
        return
    found = f"{len(kinds)} statements" if len(kinds) != 1 else f"a statement of kind {kinds[0]}"
    if kinds == ["MULTI"]:
        found = "a PIVOT without its values, which PIVOT trials ON method IN ('base', 'st') USING avg(acc) has"
    raise QueryError(f"found {found}; expected one SELECT over the views {_VIEWS}: a query only reads")


def _find_views(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """The views that a statement reads. Call it before the views exist: DuckDB lists the names that are missing."""
    try:
        names = connection.get_table_names(sql)
    except duckdb.Error:
        return set(VIEWS)  # running it reports what is wrong
    return {name.lower() for name in names} & set(VIEWS)


def _create_views(connection: duckdb.DuckDBPyConnection, storage: Storage, needed: set[str]) -> None:
    """Creates the views. One that was not read has its columns, but using it is an error, so it never looks empty."""
    tables = _read_tables(storage, needed)
    for name, columns in VIEWS.items():
        if name in tables:
            connection.register(name, tables[name])
        else:
            connection.execute(_unread_view(name, types_of(columns)))
    connection.execute("SET lock_configuration = true")


def _read_tables(storage: Storage, needed: set[str]) -> dict[str, parquet.Table]:
    tables: dict[str, parquet.Table] = {}
    if "epochs" in needed:  # before the trials, so that in a running study every epoch has its trial
        tables["epochs"] = read_epochs_table(storage)
    computed = needed & _SUMMARIES.keys()
    if not computed and "trials" not in needed:
        return tables
    membership = Membership.of(storage)  # before the rows, which may belong to a study that starts meanwhile
    if computed:
        rows = read_trials(storage)
        tables["trials"] = _add_studies(to_table(rows), membership)
        for name in computed:
            lines = (line for part in membership.split(rows) for line in _SUMMARIES[name](part.rows, part.study))
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
    # Each column is computed from the error, so that no optimiser finds the view empty without evaluating it.
    columns = ", ".join(f'CAST(e AS {_SQL_TYPES[kind]}) AS "{column}"' for column, kind in types.items())
    message = f"{name} was not read; name it in the statement itself, not in a text that it runs"
    return f"CREATE VIEW {name} AS SELECT {columns} FROM (SELECT error('{message}') AS e) WHERE e IS NULL"  # noqa: S608 - ours


def _make_unique(names: Sequence[str]) -> list[str]:
    """Makes the names of columns unique: acc, acc_1, …"""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in count(1))
        taken.append(name if name not in taken else next(new for new in numbered if new not in {*taken, *names}))
    return taken


def _explain(error: Exception) -> str:
    """DuckDB's error as a message of kdctl: safe to print, and without advice that does not apply here."""
    text = re.split(r"\n\n(?:Possible solutions|Please try installing)", str(error))[0].strip()
    message = "\n".join(map(printable, text.splitlines()))
    if "Permission Error" in text or text.endswith("extension."):
        return f"a query can read only the views {_VIEWS}: no file, no network, no extension ({message})"
    if "Out of Memory" in text:
        return f"the query needs more than {MEMORY} of memory; ask for fewer rows or columns, or filter them first"
    if text.startswith("Catalog Error: Table"):
        return f"{message}\nthe views are {_VIEWS}"
    return message
