"""`kdctl query` writes its whole result to a file in the format of its name, and SQL may begin with `--`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.results import formats, query
from orchestrator.storage.layout import Storage

Run = Callable[..., tuple[int, str, str]]
ROWS = 1000
SQL = f"SELECT i, repeat('x', 90) || chr(9) || ',' AS text, NULL AS nothing FROM range({ROWS}) t(i)"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`kdctl query` with these words, in a folder of its own."""
    storage = Storage.at(tmp_path / "runs")
    storage.prepare()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("KDCTL_STORAGE", str(tmp_path / "runs"))

    def run(*words: str, stdin: str = "") -> tuple[int, str, str]:
        result = CliRunner().invoke(cli, ["query", *words], input=stdin)
        code = getattr(result.exception, "exit_code", result.exit_code)
        return code, result.stdout, f"{result.stderr}{result.exception or ''}"

    return run


def count_rows(path: Path) -> int:
    """Counts the rows of a file with another library's reader."""
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open(newline="") as file:
                rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
            assert rows[0] == ["i", "text", "nothing"] and rows[7] == ["6", f"{'x' * 90}\t,", ""]
            return len(rows) - 1
        case ".json":
            return len(json.loads(path.read_text()))
        case ".parquet":
            return len(pq.read_table(path))
    return len(path.read_text().splitlines()) - 2  # Markdown


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".parquet", ".md", ".TSV"])
def test_a_file_holds_the_whole_result_in_the_format_of_its_name(run: Run, suffix: str) -> None:
    assert run(SQL, "--output", f"x{suffix}") == (0, "", "")
    path = Path(f"x{suffix}")
    assert count_rows(path if suffix.islower() else path.rename("x.tsv")) == ROWS


@pytest.mark.parametrize("name", ["x.xlsx", "x.txt", "x.jsonl", "x.csv.gz", "x", "x.", ".csv"])
def test_another_ending_is_refused_before_anything_is_read(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "run_query", None)
    code, out, err = run(SQL, "--output", name)
    assert (code, out) == (2, "") and "expected an ending of .csv, .tsv, .json, .parquet, .md" in err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--format", "table", "--output", "x.txt"), "the format table is shortened for reading"),
        (("--format", "csv", "--output", "x.tsv"), "does not fit the ending of --output x.tsv"),
        (("--json", "--output", "x.csv"), "does not fit the ending of --output x.csv"),
        (("--output", "nosuch/x.csv"), "its folder does not exist"),
    ],
)
def test_a_conflict_of_options_is_refused_before_anything_is_read(
    run: Run, words: tuple[str, ...], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "run_query", None)
    code, _, err = run(SQL, *words)
    assert code == 2 and part in err and list(Path.cwd().iterdir()) == []


def test_a_format_may_be_named_if_the_ending_is_unknown(run: Run) -> None:
    assert run(SQL, "--format", "csv", "--output", "x.dat") == (0, "", "")
    assert count_rows(Path("x.dat").rename("x.csv")) == ROWS


def test_a_terminal_keeps_the_tabs_between_cells() -> None:
    out = io.StringIO()
    formats.write("tsv", formats.Heading(["a", "b"], [True, False]), [[[1], ["\x1b"]]], out, is_terminal=True)
    assert out.getvalue() == "a\tb\n1\t\\u001b\n"


@pytest.mark.parametrize(
    "sql",
    [
        "-- a comment\nSELECT 1 AS a",
        "--a comment\nSELECT 1 AS a",
        "--\nSELECT 1 AS a",
        "-- format: any=thing\nSELECT 1 AS a;",
        "  \n-- a\n-- b\n  SELECT 1 AS a ; ",
        "/* a */ SELECT 1 AS a -- b",
    ],
)
@pytest.mark.parametrize("form", [(), ("--format", "csv"), ("--json",)])
def test_sql_may_begin_with_a_comment(run: Run, sql: str, form: tuple[str, ...]) -> None:
    expected = run("SELECT 1 AS a", *form)
    assert expected[0] == 0
    assert run(sql, *form) == run(*form, sql) == run("-", *form, stdin=sql) == expected
    assert run(*form, "--", sql) == expected


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--formt", "csv", "SELECT 1"), "No such option"),
        (("--formt=csv", "SELECT 1"), "No such option"),
        (("-x", "SELECT 1"), "No such option"),
        (("-- only a comment",), "found 0 statements"),
        (("--format", "csv"), "Missing argument"),
    ],
)
def test_an_option_is_still_an_option(run: Run, words: tuple[str, ...], part: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and part in err
