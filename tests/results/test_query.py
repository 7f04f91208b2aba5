"""Queries: every format exact and safe to show, nothing reachable but three views, no error while a study runs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from test_store import EPOCH, EPOCHS, TRIALS, WRITER, trial

from orchestrator import cli
from orchestrator.commands.query import query as command
from orchestrator.errors import StorageError
from orchestrator.records import State
from orchestrator.results import query, store
from orchestrator.results.evidence.comparisons import COMPARISON_COLUMNS, summarize_comparisons
from orchestrator.results.formats import MAX_ROWS, MAX_WIDTH, Heading, write
from orchestrator.results.output_formats import QueryFormat
from orchestrator.results.query import QueryError, run_query
from orchestrator.results.summary import RESULT_COLUMNS, SUMMARY_COLUMNS, summarize_metrics, summarize_results
from orchestrator.storage.layout import Storage

Ask = Callable[..., list[dict[str, Any]]]
RECIPE = {"epochs": 2, "lr": 0.1}


def fetch(storage: Storage, sql: str) -> list[dict[str, Any]]:
    """Runs a query; returns its rows."""
    with run_query(storage, sql) as answer:
        names = answer.heading.names
        return [
            dict(zip(names, row, strict=True)) for columns in answer.columns() for row in zip(*columns, strict=True)
        ]


def fill(storage: Storage) -> Storage:
    """Three finished trials with two epochs each, and a failed one."""
    storage.prepare()
    for number, trial_id in enumerate("abc"):
        row = replace(trial(trial_id, acc=90.0 + number), method="base", dataset="digits", student="resnet_32_8")
        store.write_trial(storage, replace(row, seed=number, recipe=RECIPE, study="s"))
        store.write_epochs(storage, trial_id, [EPOCH, replace(EPOCH, epoch=2)])
    failed = replace(trial("d", State.FAILED, acc=1.0), method="base", dataset="digits", student="resnet_32_8")
    store.write_trial(storage, replace(failed, seed=3, recipe=RECIPE, error="went wrong", study="s"))
    return storage


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Such a storage. To be read only."""
    return fill(Storage.at(tmp_path_factory.mktemp("filled") / "runs"))


@pytest.fixture
def empty(tmp_path: Path) -> Storage:
    """A storage that was never used."""
    return Storage.at(tmp_path / "missing")


# What a query sees.


def test_the_views_hold_what_the_storage_holds(filled: Storage) -> None:
    rows = store.read_trials(filled)
    assert fetch(filled, "FROM trials ORDER BY trial_id") == [{**row.to_row(), "studies": ["s"]} for row in rows]
    assert fetch(filled, "FROM epochs ORDER BY ALL") == store.read_epochs(filled)
    assert fetch(filled, "FROM summary") == list(summarize_metrics(rows, "s"))
    assert fetch(filled, "FROM results") == list(summarize_results(rows, "s"))


def test_comparisons_are_those_of_the_rows(empty: Storage) -> None:
    empty.prepare()
    accuracies = {"base": (80.0, 81.5, 79.0), "st": (90.0, 92.0, 91.0), "logit": (91.0, 90.0, 91.0)}
    for number, (method, found) in enumerate(accuracies.items(), 1):
        for seed, acc in enumerate(found):
            store.write_trial(empty, reported.row(10 * number + seed, method, acc, seed=seed))
    lines = fetch(empty, "FROM comparisons")
    assert lines == list(summarize_comparisons(store.read_trials(empty), "made up")) and len(lines) == 3
    for method in ("st", "logit"):
        (line,) = fetch(empty, f"FROM comparisons WHERE setting LIKE '{method} %' AND other LIKE 'base %'")
        assert line["p"] == pytest.approx(ttest_rel(accuracies[method], accuracies["base"]).pvalue)


def test_a_mean_is_a_mean(filled: Storage) -> None:
    (line,) = fetch(
        filled, "SELECT method, avg(acc) AS mean, count(*) AS n FROM trials WHERE state = 'finished' GROUP BY 1"
    )
    assert line == {"method": "base", "mean": 91.0, "n": 3}
    (line,) = fetch(filled, "SELECT runs, n, mean, std FROM summary WHERE metric = 'acc'")
    assert line == {"runs": 4, "n": 3, "mean": 91.0, "std": 1.0}


def test_views_can_be_joined(filled: Storage) -> None:
    sql = """
        WITH best AS (SELECT * FROM trials WHERE acc > 90.5)
        SELECT count(*) AS n FROM Epochs JOIN best USING (trial_id) WHERE EXISTS (FROM main.summary)
    """
    assert fetch(filled, sql) == [{"n": 6 - 2}]


def test_a_storage_that_was_never_used_has_views_without_rows(empty: Storage) -> None:
    columns = {
        "trials": [*TRIALS, "studies"], "epochs": EPOCHS, "summary": list(SUMMARY_COLUMNS),
        "results": list(RESULT_COLUMNS), "comparisons": list(COMPARISON_COLUMNS),
    }  # fmt: skip
    assert list(query.VIEWS) == list(columns)
    for view, names in columns.items():
        with run_query(empty, f"FROM {view}") as answer:
            assert answer.heading.names == names and list(answer.columns()) == []
        assert [row["column_name"] for row in fetch(empty, f"DESCRIBE {view}")] == names
    assert [row["name"] for row in fetch(empty, "SHOW TABLES")] == sorted(columns)


def test_a_view_has_the_same_types_whether_it_is_read_or_not(filled: Storage) -> None:
    catalog = "SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY ALL"
    unread = fetch(filled, catalog)
    counted = f"(SELECT count(*) + 1 FROM {', '.join(query.VIEWS)})"
    read = fetch(filled, f"{catalog.partition('ORDER')[0]} WHERE {counted} ORDER BY ALL")
    assert unread == read and len(read) == sum(map(len, query.VIEWS.values()))


def test_only_what_a_statement_names_is_read(filled: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(_: Storage) -> None:
        raise AssertionError("read without need")

    monkeypatch.setattr(query, "read_epochs_table", unwanted)
    assert len(fetch(filled, "SELECT 'epochs' AS epochs FROM trials")) == 4
    assert len(fetch(filled, "WITH epochs AS (FROM trials) FROM epochs, summary")) == 4 * 3
    monkeypatch.setattr(query, "read_trials_table", unwanted)
    monkeypatch.setattr(query, "read_trials", unwanted)
    assert fetch(filled, "SELECT 1 AS one") == [{"one": 1}]


def test_a_view_that_was_not_read_does_not_look_empty(filled: Storage) -> None:
    assert fetch(filled, "SELECT count(*) AS n FROM query('FROM epochs')") == [{"n": 6}]
    with duckdb.connect() as connection:
        query._create_views(connection, filled, {"trials"})
        assert len(connection.sql("FROM trials").fetchall()) == 4
        for sql in (
            "FROM epochs",
            "SELECT count(*) FROM summary",
            "SELECT 1 FROM epochs WHERE epoch > 3",
            "SELECT max(n) FROM summary",
        ):
            with pytest.raises(duckdb.Error, match="was not read"):
                connection.sql(sql).fetchall()


def test_a_row_of_an_older_version_lacks_columns(filled: Storage, tmp_path: Path) -> None:
    storage = fill(Storage.at(tmp_path))
    for name in (storage.trial_row("a"), storage.trial_epochs("a")):
        path = tmp_path / name
        pq.write_table(pq.read_table(path).drop_columns(["images_per_second"]), path)
    sql = "SELECT count(*) AS n, count(images_per_second) AS has FROM "
    assert fetch(storage, sql + "epochs") == [{"n": 6, "has": 4}]
    assert fetch(storage, sql + "trials") == [{"n": 4, "has": 0}]


@pytest.mark.parametrize("view", query.VIEWS)
def test_a_damaged_file_is_named(view: str, tmp_path: Path) -> None:
    storage = fill(Storage.at(tmp_path))
    path = tmp_path / (storage.trial_epochs("b") if view == "epochs" else storage.trial_row("b"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StorageError, match=rf"{re.escape(str(path))} is not a complete Parquet file"):
        fetch(storage, f"SELECT 1 FROM {view}")
    assert fetch(storage, "SELECT 1 AS one") == [{"one": 1}]


def test_text_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    storage = fill(Storage.at(tmp_path))
    path = tmp_path / storage.trial_row("b")
    table = pq.read_table(path)
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    pq.write_table(table.set_column(table.column_names.index("host"), "host", broken), path)
    with pytest.raises(StorageError, match=r"b\.parquet is not a complete Parquet file"):
        fetch(storage, "SELECT host FROM trials")


def test_times_are_utc(filled: Storage) -> None:
    sql = "SELECT start_time::VARCHAR AS text, date_trunc('hour', start_time) AS hour FROM trials LIMIT 1"
    assert fetch(filled, sql) == [
        {"text": "2024-01-02 03:04:05.000006+00", "hour": datetime(2024, 1, 2, 3, tzinfo=UTC)}
    ]


# What a query may not do.

OUTSIDE = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'OTHER.parquet'",
    "SELECT * FROM read_parquet('OTHER.parquet')",
    "SELECT * FROM read_parquet(['OTHER.parquet'])",
    "SELECT * FROM parquet_metadata('OTHER.parquet')",
    "SELECT * FROM parquet_schema('OTHER.parquet')",
    "SELECT * FROM read_json('OTHER.json')",
    "SELECT * FROM sniff_csv('OTHER.csv')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
    "SELECT * FROM read_csv('https://127.0.0.1:9/x.csv')",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT getenv('PATH')",
    "FROM secret_variable",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM arrow_scan(1, 1, 1)",
    "SELECT * FROM sqlite_scan('OTHER', 'x')",
    "SELECT * FROM st_read('OTHER')",
]
REFUSED = [
    "COPY trials TO 'OTHER.csv'",
    "COPY (SELECT 1) TO 'OTHER.parquet' (FORMAT parquet)",
    "COPY trials FROM 'OTHER.csv'",
    "EXPORT DATABASE 'OTHER'",
    "IMPORT DATABASE 'OTHER'",
    "ATTACH 'OTHER.db'",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD 'OTHER.so'",
    "SET threads = 1",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET memory_limit",
    "SET VARIABLE x = 1",
    "PRAGMA version",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CREATE TABLE x AS SELECT 1",
    "CREATE TEMP VIEW x AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET (TYPE s3)",
    "INSERT INTO trials SELECT * FROM trials",
    "WITH x AS (SELECT 1) INSERT INTO trials SELECT * FROM x",
    "UPDATE trials SET acc = 100",
    "DELETE FROM trials",
    "DROP VIEW trials",
    "ALTER TABLE trials ADD COLUMN x INT",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'OTHER'",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW trials",
    "",
    " ; ;",
    "-- nothing",
]


def outside(sql: str, folder: Path) -> str:
    """Replaces OTHER in a statement by the path of files that exist."""
    pq.write_table(pa.table({"x": [1]}), folder / "other.parquet")
    for suffix in ("csv", "json"):
        (folder / f"other.{suffix}").write_text("[1]\n")
    return sql.replace("OTHER", str(folder / "other"))


@pytest.mark.parametrize("sql", OUTSIDE)
def test_nothing_outside_can_be_read(sql: str, filled: Storage, tmp_path: Path) -> None:
    secret_variable = pa.table({"x": [1]})  # noqa: F841 - DuckDB would find it by its name
    with pytest.raises(
        QueryError, match="can read only the views trials, epochs, summary, results|does not exist|No function"
    ):
        fetch(filled, outside(sql, tmp_path))


@pytest.mark.parametrize("sql", REFUSED)
def test_everything_except_one_select_is_refused(sql: str, filled: Storage, tmp_path: Path) -> None:
    statement = outside(sql, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError, match="expected one SELECT over the views trials, epochs, summary, results"):
        fetch(filled, statement)
    assert sorted(tmp_path.iterdir()) == before


def test_the_settings_stay_locked_whatever_runs(filled: Storage, tmp_path: Path) -> None:
    """Without the check of the statement, DuckDB itself refuses."""
    with duckdb.connect() as connection:
        query._lock(connection)
        query._create_views(connection, filled, {"trials"})
        for sql in (outside(sql, tmp_path) for sql in REFUSED):
            if re.match("COPY|EXPORT|IMPORT|ATTACH|INSTALL|LOAD|SET (?!VAR)|RESET", sql):
                with pytest.raises(duckdb.Error):
                    connection.execute(sql)
        expected = {"enable_external_access": "false", "lock_configuration": "true", "temp_directory": ""}
        rows = connection.sql("SELECT name, value FROM duckdb_settings()").fetchall()
        assert expected.items() <= dict(rows).items()
        assert connection.sql("SELECT count(*) FROM duckdb_secrets()").fetchall() == [(0,)]


def test_a_pivot_has_to_name_its_values(filled: Storage) -> None:
    with pytest.raises(QueryError, match="PIVOT trials ON method IN"):
        fetch(filled, "PIVOT trials ON method USING avg(acc)")
    sql = "PIVOT trials ON state IN ('finished', 'failed') USING count(*) GROUP BY method"
    assert fetch(filled, sql) == [{"method": "base", "finished": 3, "failed": 1}]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT ac FROM trials", 'Candidate bindings: "acc"'),
        ("SELECT acc FROM trails", 'Did you mean "trials"?\nthe views are trials, epochs, summary'),
        ("SELEC acc FROM trials", "syntax error at or near"),
        ("SELECT avg(method) FROM trials", "avg"),
        ("SELECT ?", "parameters"),
        ("SELECT error('a' || chr(27) || '[2J')", r"a\x1b[2J"),
        ("SELECT CAST(method AS INT) FROM trials", "Could not convert"),
        ("SELECT CAST(if(range = 300000, 'x', '1') AS INT) FROM range(400000)", "Could not convert"),
        ("SELECT [TIMESTAMP 'infinity'] AS x", "column x cannot be shown"),
        ("SELECT '\udcff'", "not valid UTF-8"),
    ],
)
def test_an_error_of_duckdb_is_one_message(sql: str, message: str, filled: Storage) -> None:
    with pytest.raises(QueryError) as caught:
        fetch(filled, sql)
    assert message in str(caught.value) and caught.value.exit_code == 2
    assert "Possible solutions" not in str(caught.value)


def test_a_query_that_needs_too_much_memory_is_one_message(filled: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "memory_limit = '2GiB'"
    assert limit in query._SETTINGS
    small = [setting.replace("2GiB", "50MiB") for setting in query._SETTINGS]  # to fill two takes a while
    monkeypatch.setattr(query, "_SETTINGS", small)
    with pytest.raises(QueryError, match="needs more than 2GiB of memory; ask for fewer rows"):
        fetch(filled, "SELECT list(a.range + b.range) FROM range(1000000) a, range(1000000) b")


# While a study runs.


def test_rows_that_are_rewritten_meanwhile_are_never_an_error(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    ended = threading.Event()

    def rewrite_epochs() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            store.write_epochs(storage, "a", [replace(EPOCH, epoch=e, test_acc=number) for e in (1, 2, 3)])

    command = [sys.executable, "-c", WRITER, storage.backend.address]
    thread = threading.Thread(target=rewrite_epochs)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as writer:
        assert writer.stdout
        try:
            assert writer.stdout.readline() == "ready\n"
            thread.start()
            contents = set()
            for _ in range(15):
                rows = fetch(storage, "SELECT trial_id, acc, last_acc, top5 FROM trials ORDER BY 1")
                assert [row["trial_id"] for row in rows] == list("abcd")
                assert all(row["acc"] == row["last_acc"] == row["top5"] for row in rows)
                (epochs,) = fetch(storage, "SELECT count(DISTINCT test_acc) AS kinds, max(test_acc) AS at FROM epochs")
                assert epochs["kinds"] <= 1
                contents |= {rows[0]["acc"], epochs["at"]}
        finally:
            ended.set()
            if thread.ident:
                thread.join()
            writer.kill()
    assert len(contents) > 2, "the rows changed while they were read"


def test_a_bucket_is_queried_like_a_folder(s3_address: str, filled: Storage) -> None:
    storage = Storage.at(s3_address)
    assert fetch(storage, "FROM trials") == []
    fill(storage)
    for view in query.VIEWS:
        assert fetch(storage, f"FROM {view} ORDER BY ALL") == fetch(filled, f"FROM {view} ORDER BY ALL")
    with pytest.raises(QueryError, match="no network"):
        fetch(storage, f"FROM read_parquet('{s3_address}/results/trials/a.parquet')")


# Formats.


def rendered(form: str, sql: str, storage: Storage, is_terminal: bool = False) -> str:
    """Runs a query; returns its output in a format."""
    out = io.StringIO()
    with run_query(storage, sql) as answer:
        write(form, answer.heading, answer.columns(), out, is_terminal)
    return out.getvalue()


VALUES = """
SELECT * FROM (VALUES
    ('a,"b"', 1, 1/3, true, 0.10::DECIMAL(9, 2), DATE '2024-01-02', TIMESTAMPTZ '2024-01-02 03:04:05.000006+00',
     INTERVAL 90 SECOND),
    ('', NULL, 'nan', NULL, NULL, NULL, NULL, NULL),
    (NULL, 9007199254740993, '-inf', false, 12345.67, NULL, NULL, INTERVAL '14 months 3 days')
) t(text, number, ratio, flag, exact, day, moment, took)
"""


def test_csv_is_exact(empty: Storage) -> None:
    assert rendered("csv", VALUES, empty) == (
        "text,number,ratio,flag,exact,day,moment,took\n"
        '"a,""b""",1,0.3333333333333333,true,0.10,2024-01-02,2024-01-02T03:04:05.000006+00:00,00:01:30\n'
        '"",,nan,,,,,\n'
        ",9007199254740993,-inf,false,12345.67,,,14 months 3 days\n"
    )


def test_json_is_exact_and_valid(empty: Storage) -> None:
    first, second, third = json.loads(rendered("json", VALUES, empty), parse_constant=pytest.fail, parse_float=Decimal)
    assert first["ratio"] == Decimal("0.3333333333333333") and first["exact"] == Decimal("0.10")
    assert (first["text"], first["flag"], first["moment"]) == ('a,"b"', True, "2024-01-02T03:04:05.000006+00:00")
    assert second == {**dict.fromkeys(first), "text": ""}
    assert (third["number"], third["ratio"], third["took"]) == (9007199254740993, None, "14 months 3 days")


def test_a_table_is_aligned_and_rounded(empty: Storage) -> None:
    assert rendered("table", VALUES, empty) == (
        "text             number     ratio  flag      exact  day         moment               took\n"
        'a,"b"                 1  0.333333  true       0.10  2024-01-02  2024-01-02 03:04:05  00:01:30\n'
        "                      -       nan  -             -  -           -                    -\n"
        "-      9007199254740993      -inf  false  12345.67  -           -                    14 months 3 days\n"
    )


def test_markdown_is_a_table_of_text(empty: Storage) -> None:
    sql = "SELECT '<b>|`*x*`' AS \"a|b\", 92.123456789::DOUBLE AS acc, NULL AS nothing"
    assert rendered("markdown", sql, empty) == (
        "| a&#124;b | acc | nothing |\n| --- | ---: | --- |\n| &#60;b&#62;&#124;&#96;&#42;x&#42;&#96; | 92.1235 | - |\n"
    )


def test_nested_values_are_json_everywhere(empty: Storage) -> None:
    sql = "SELECT [1.5, NULL] l, {'a': DATE '2024-01-02', 'b': 'x'} s, MAP {'k': 'nan'::DOUBLE} m, '\\xC3'::BLOB b"
    (row,) = json.loads(rendered("json", sql, empty))
    assert row == {"l": [1.5, None], "s": {"a": "2024-01-02", "b": "x"}, "m": [["k", None]], "b": "c3"}
    assert list(csv.reader(io.StringIO(rendered("csv", sql, empty))))[1][:2] == ["[1.5, null]", json.dumps(row["s"])]


def test_times_beyond_those_of_python_are_text(empty: Storage) -> None:
    sql = "SELECT TIMESTAMP '20000-01-01' AS far, TIMESTAMP_NS '2024-01-02 00:00:00.123456789' AS fine"
    assert rendered("csv", sql, empty).splitlines()[1].split(",")[1] == "2024-01-02T00:00:00.123456789"
    assert "20000-01-01" in rendered("csv", sql, empty)


def test_two_columns_of_the_same_name_are_both_there(empty: Storage) -> None:
    sql = "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a"
    assert json.loads(rendered("json", sql, empty)) == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]


@pytest.mark.parametrize(("form", "text"), [("table", "a  b\n"), ("csv", "a,b\n"), ("json", "[]\n")])
def test_no_rows_are_no_rows(form: str, text: str, empty: Storage) -> None:
    assert rendered(form, "SELECT 1 AS a, '' AS b WHERE false", empty) == text


def test_a_row_of_nulls_is_still_a_line(empty: Storage) -> None:
    assert rendered("csv", "SELECT NULL AS a", empty) == 'a\n""\n'


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([92.51333333, 90.0], ["92.5133", "90.0000"]),
        ([90.0, 91.5], ["90.0", "91.5"]),
        ([10.0], ["10"]),
        ([1e-5, 0.1], ["1e-05", "0.1"]),
        ([1234567.891], ["1234568"]),
        ([1e20, -0.0], ["1e+20", "-0"]),
        ([math.nan, math.inf], ["nan", "inf"]),
    ],
)
def test_floats_are_shown_to_six_digits(values: list[float], cells: list[str]) -> None:
    out = io.StringIO()
    write("table", Heading(["x"], [True]), [[values]], out)
    assert [line.strip() for line in out.getvalue().splitlines()[1:]] == cells


def test_a_long_table_is_cut_with_a_note() -> None:
    out = io.StringIO()
    batches = [[[number] * 70] for number in range(5)]
    assert write("table", Heading(["x"], [True]), batches, out) == 350 - MAX_ROWS
    assert len(out.getvalue().splitlines()) == 1 + MAX_ROWS
    assert write("markdown", Heading(["x"], [True]), batches, io.StringIO()) == 0


def test_a_wide_cell_is_cut_only_in_a_table() -> None:
    for form in set(QueryFormat) - {QueryFormat.PARQUET}:
        out = io.StringIO()
        write(form, Heading(["x", "y"], [False, False]), [[["漢" * 99], ["end"]]], out)
        assert ("漢" * 99 in out.getvalue()) == (form != "table")
        assert ("漢" * ((MAX_WIDTH - 1) // 2) + "…" in out.getvalue()) == (form == "table")


CELLS = st.none() | st.text(st.characters(codec="utf-8"), max_size=30)
HARMLESS = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]*")


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=5),
    names=st.tuples(CELLS, CELLS).filter(lambda two: two[0] != two[1]),
)
def test_any_text_comes_through_every_format(
    rows: list[tuple[str | None, ...]], names: tuple[str | None, str | None]
) -> None:
    heads = [name or "" for name in names]
    columns = [[row[index] for row in rows] for index in (0, 1)]
    heading = Heading(heads, [False, False])
    texts = {}
    for form in set(QueryFormat) - {QueryFormat.PARQUET}:
        out = io.StringIO()
        write(form, heading, [columns], out)
        texts[form] = out.getvalue()
    assert list(csv.reader(io.StringIO(texts["csv"], newline=""))) == [heads, *([c or "" for c in row] for row in rows)]
    pairs = json.loads(texts["json"], object_pairs_hook=tuple)  # a pair of brackets without rows is a list
    assert pairs == [tuple(zip(heads, row, strict=True)) for row in rows]
    assert len(texts["table"].split("\n")) == len(rows) + 2
    assert len(texts["markdown"].split("\n")) == len(rows) + 3
    for form in ("table", "markdown", "json"):
        assert HARMLESS.fullmatch(texts[form]), form
    out = io.StringIO()
    write("csv", heading, [columns], out, is_terminal=True)
    assert HARMLESS.fullmatch(out.getvalue())


@settings(max_examples=50)
@given(st.lists(st.floats(), max_size=5))
def test_floats_keep_every_digit(values: list[float]) -> None:
    texts = {}
    for form in ("csv", "json"):
        out = io.StringIO()
        write(form, Heading(["x"], [True]), [[values]], out)
        texts[form] = out.getvalue()
    assert [repr(float(line)) for line in texts["csv"].splitlines()[1:]] == list(map(repr, values))
    finite = [value if math.isfinite(value) else None for value in values]
    assert [row["x"] for row in json.loads(texts["json"], parse_constant=pytest.fail)] == finite


# The command.

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(filled: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `kdctl query` on the filled storage, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCTL_STORAGE", filled.backend.address)

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kdctl", "query", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_a_query_prints_a_table(run: Run) -> None:
    code, out, err = run("SELECT trial_id, acc FROM trials ORDER BY ALL")
    assert (code, err) == (0, "")
    assert out == "trial_id  acc\na          90\nb          91\nc          92\nd           1\n"


def test_omitted_rows_are_reported_on_standard_error(run: Run) -> None:
    code, out, err = run("SELECT range FROM range(1234)")
    assert (code, len(out.splitlines()), err) == (0, 101, "… 1,134 more rows; --format csv prints all\n")


EXAMPLES = re.findall(r'kdctl query "(.*?)"', command.help or "", re.DOTALL)


@pytest.mark.parametrize("sql", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_of_the_help_runs(run: Run, sql: str) -> None:
    code, out, err = run(sql)
    assert (code, err) == (0, "") and len(out.splitlines()) > 1


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["--format", "json"], "json"), (["--json"], "json"), (["--format", "csv"], "csv"),
        (["--format", "markdown"], "markdown"), (["--output", "x.csv"], "csv"), (["--output", "x.JSON"], "json"),
        (["--output", "x.md"], "markdown"), (["--output", "x.tsv"], "tsv"), (["--output", "x", "--json"], "json"),
    ],
)  # fmt: skip
def test_the_format_is_the_requested_one(run: Run, filled: Storage, words: list[str], form: str) -> None:
    sql = "SELECT trial_id, acc FROM trials ORDER BY ALL"
    code, out, err = run(sql, *words)
    if "--output" in words:
        assert out == ""
        out = Path(words[1]).read_text()
    assert (code, err, out) == (0, "", rendered(form, sql, filled))
    assert [path.name for path in Path.cwd().iterdir()] == ([words[1]] if "--output" in words else [])


def test_parquet_has_every_row_and_type(run: Run, filled: Storage) -> None:
    assert run("FROM epochs", "--output", "e.parquet") == (0, "", "")
    assert sorted(pq.read_table("e.parquet").to_pylist(), key=str) == sorted(store.read_epochs(filled), key=str)
    code, _, err = run("SELECT INTERVAL 1 DAY AS x", "--output", "e.parquet")
    assert code == 2 and "cast it to VARCHAR" in err
    assert len(pq.read_table("e.parquet")) == 6 and [path.name for path in Path.cwd().iterdir()] == ["e.parquet"]


def kdctl(storage: Storage, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`kdctl query` as a process."""
    line = [sys.executable, "-m", "orchestrator.cli", "query", *words, "--storage", storage.backend.address]
    return subprocess.run(line, capture_output=True, timeout=120, **options)


def test_parquet_goes_through_a_pipe_and_sql_comes_through_one(filled: Storage) -> None:
    done = kdctl(filled, "-", "--format", "parquet", input=b"FROM trials\n")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(io.BytesIO(done.stdout)).column_names == [*TRIALS, "studies"]
    done = kdctl(filled, "-", input=b"SELECT '\xff'")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"the query is not valid UTF-8; save it as UTF-8\n")


def test_data_is_utf8_whatever_the_locale(filled: Storage) -> None:
    done = kdctl(filled, "SELECT '←' AS a", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.stdout.decode() == "a\n←\n"


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_terminal_receives_no_control_characters(run: Run, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, err = run("SELECT chr(27) || '[2J' AS a", "--format", form)
    if form == "parquet":
        assert code == 2 and out == "" and "add --output FILE" in err
    else:
        assert (code, out) == (0, "a\n\\u001b[2J\n")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nosuch/x.csv", "its folder does not exist"), ("/dev/null", "it is not a regular file"),
        (".", "it is not a regular file"),
        ("RUNS/results/trials/a.parquet", "inside the storage"), ("RUNS/new.csv", "inside the storage"),
    ],
)  # fmt: skip
def test_some_paths_are_never_written(run: Run, filled: Storage, output: str, message: str) -> None:
    form = [] if "x.csv" in output or "RUNS" in output else ["--format", "csv"]
    code, out, err = run("SELECT 1", "--output", output.replace("RUNS", filled.backend.address), *form)
    assert (code, out) == (2, "") and message in err
    assert len(fetch(filled, "FROM trials")) == 4


@pytest.mark.parametrize("words", [["--json", "--format", "csv"], ["--format", "xml"], ["--bad"]])
def test_wrong_usage(run: Run, words: list[str]) -> None:
    code, out, err = run("SELECT 1", *words)
    assert (code, out) == (2, "") and err


def test_an_error_is_a_message_and_an_exit_code(run: Run) -> None:
    assert run("DROP VIEW trials")[0] == 2
    code, out, err = run("SELECT ac FROM trials")
    assert (code, out) == (2, "") and "Candidate bindings" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000) a, range(10000000) b WHERE (a.range * b.range) % 7 = 3",
        "SELECT a.range FROM range(1000000) a, range(10000000) b",
    ],
    ids=["computing", "streaming"],
)
def test_ctrl_c_ends_a_query_that_would_take_days(sql: str, filled: Storage) -> None:
    # The signal is sent only after DuckDB has used some processor time, so that the query runs.
    code = """
import os, signal, threading, time
from orchestrator import cli
from orchestrator.results import query
def interrupt():
    before = time.process_time()
    while time.process_time() < before + 0.3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
def run_watched(*arguments, real=query._run, watcher=threading.Thread(target=interrupt, daemon=True)):
    if not watcher.ident:
        watcher.start()
    return real(*arguments)
query._run = run_watched
cli.main()
"""
    line = [sys.executable, "-c", code, "query", sql, "--storage", filled.backend.address]
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "\nstopped\n")
