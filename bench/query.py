"""What a query costs: `kdctl query` against DuckDB reading the Parquet files itself, on the same storage.

python bench/query.py [--trials 500 5000] [--epochs 200] [--repeats 5]

Each figure comes from a new process, and the two ways alternate. The files were just written, so they are in memory.
The time is without Python's start and imports, and `times` is kdctl's time divided by DuckDB's, pair by pair. DuckDB
uses `read_parquet` on the folder, which fails now and then while a study runs; kdctl notices damaged files and works
while a study runs. DuckDB reads only the columns that it needs, kdctl whole files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from reading import fill
from shared.common import compute_ratios, format_spread, measure_pairs, parse_positive
from shared.machine import describe_machine

QUERIES = {
    "mean of each method": "SELECT method, avg(acc), count(*) FROM {trials} GROUP BY method",
    "learning curve": "SELECT epoch, avg(test_acc), count(*) FROM {epochs} GROUP BY epoch ORDER BY epoch",
    "join": (
        "SELECT method, e.epoch, avg(test_acc), stddev(train_loss) FROM {epochs} e JOIN {trials} t USING (trial_id) "
        "GROUP BY ALL ORDER BY ALL"
    ),
}
OURS = """
import sys, time
from orchestrator.results.query import run_query
from orchestrator.storage.layout import Storage
start = time.perf_counter()
with run_query(Storage.at(sys.argv[1]), sys.argv[2]) as result:
    rows = sum(len(columns[0]) for columns in result.columns())
print(time.perf_counter() - start, rows)
"""
DUCKDB = """
import sys, time
import duckdb
start = time.perf_counter()
with duckdb.connect() as connection:
    connection.execute("SET enable_progress_bar = false")
    rows = len(connection.sql(sys.argv[2]).to_arrow_table())
print(time.perf_counter() - start, rows)
"""


def time_query(program: str, folder: Path, query: str) -> tuple[float, int]:
    """Seconds of one query in a process of its own, and the number of rows of its result."""
    command = [sys.executable, "-c", program, str(folder), query]
    seconds, rows = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), int(rows)


def compare(folder: Path, query: str, repeats: int) -> str:
    """The figures of one query, as cells."""
    files = {name: f"read_parquet('{folder}/results/{name}/*.parquet')" for name in ("trials", "epochs")}
    ours_text, theirs_text = query.format(trials="trials", epochs="epochs"), query.format(**files)
    (_, rows), (_, expected) = time_query(OURS, folder, ours_text), time_query(DUCKDB, folder, theirs_text)
    assert rows == expected
    ours, theirs = measure_pairs(
        lambda: time_query(OURS, folder, ours_text)[0], lambda: time_query(DUCKDB, folder, theirs_text)[0], repeats
    )
    figures = (format_spread(values, ".2f") for values in (ours, theirs, compute_ratios(ours, theirs)))
    return f"{rows} | {repeats} | {' | '.join(figures)}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=parse_positive, nargs="+", default=[500, 5000])
    parser.add_argument("--epochs", type=parse_positive, default=200)
    parser.add_argument("--repeats", type=parse_positive, default=5)
    options = parser.parse_args()
    print(describe_machine(), end="\n\n")
    print("| trials | epochs each | query | rows | n | kdctl, s | DuckDB, s | times |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for trials in options.trials:
        with tempfile.TemporaryDirectory() as name:
            fill(Path(name), trials, options.epochs)
            for title, query in QUERIES.items():
                cells = compare(Path(name), query, options.repeats)
                print(f"| {trials:,} | {options.epochs} | {title} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
