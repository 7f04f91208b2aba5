"""What reading many epochs costs: all rows of the `epochs` table of a storage, one Parquet file per trial.

python bench/reading.py [--trials 50 500 5000] [--epochs 200] [--repeats 3]

Each way is a new process. The files were just written, so they are in memory. The time is without Python's start and
imports. `peak` is the largest resident memory of the process, of which pyarrow's import is some 70 MiB.

- `dataset`: pyarrow.dataset over the folder, into one table;
- `one column`: the same for the column test_acc alone;
- `one file`: the same rows in a single Parquet file, to show what the many files cost;
- `read_epochs`, `read_states`: kdctl's own readers, which return Python dicts and states and notice damaged files;
  `read_trials` is the reader behind `kdctl results`, one row per trial;
- `query`: `SELECT count(*) FROM epochs`, as `kdctl query` runs it;
- a way with `, copied` reads after a launch has copied the rows into one file per table, as it does at its end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from shared.machine import describe_machine, format_spread

from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import compaction
from orchestrator.storage.layout import Storage

EPOCH = EpochRecord(1, 0.1, 1 / 3, 1 / 3, None, 200 / 3, 1 / 3, 200 / 3, None, 1 / 3, 1e3)
ROW = TrialRecord(
    no=1, method="base", dataset="cifar10", student="resnet_32_20", teacher=None, start_time=datetime.now(UTC),
    acc=200 / 3, epoch=1, nepoch=200, lr=0.1, batch_size=128, trial_id="", study="reading", state=State.FINISHED,
    error=None, failure=None, seed=0, last_acc=200 / 3, selected_acc=None, top5=100.0, teacher_id=None,
    teacher_acc=None, agreement=None, params=272_474, seconds=1000 / 3, images_per_second=1e3, device="cpu, 1 threads",
    host="host", recipe={}, kdctl_version="0.1.0", torch_version="2.11.0", ray_version=None, git_commit=None,
    end_time=datetime.now(UTC), resumed=0, weights_bytes=1, weights_sha256="0" * 64,
)  # fmt: skip
READ = {
    "dataset": "len(ds.dataset(epochs).to_table())",
    "one column": "len(ds.dataset(epochs).to_table(columns=['test_acc']))",
    "one file": "len(pq.read_table(whole))",
    "read_epochs": "len(store.read_epochs(storage))",
    "read_trials": "len(store.read_trials(storage))",
    "read_states": "len(store.read_states(storage))",
    "query": "count(storage)",
}
COPIED = ("read_epochs", "read_trials", "read_states", "query")  # which profit from the copy
RUN = """
import sys, time
from pathlib import Path
import pyarrow.dataset as ds, pyarrow.parquet as pq
from orchestrator.results import store
from orchestrator.results.query import run_query
from orchestrator.storage.layout import Storage
def count(storage):
    with run_query(storage, "SELECT count(*) AS n FROM epochs") as found:
        return next(found.columns())[0][0]
storage = Storage.at(sys.argv[1])
epochs, whole = f"{{sys.argv[1]}}/results/epochs", f"{{sys.argv[1]}}/whole.parquet"
start = time.perf_counter()
rows = {expression}
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text()  # what getrusage says includes the parent's memory
print(seconds, status.partition("VmHWM:")[2].split()[0], rows)
"""


def fill(folder: Path, trials: int, epochs: int) -> None:
    """Writes a storage as finished trials leave it, weights of a byte aside, and its epochs in one file as well."""
    storage = Storage.at(folder)
    storage.prepare()
    with patch("os.fsync"):  # none of it needs to outlast the machine
        _fill(storage, trials, epochs)
    pq.write_table(ds.dataset(folder / storage.epoch_rows).to_table(), folder / "whole.parquet", compression="zstd")


def _fill(storage: Storage, trials: int, epochs: int) -> None:
    records = [replace(EPOCH, epoch=epoch, train_loss=1 / epoch) for epoch in range(1, epochs + 1)]
    for number in range(trials):
        trial_id = f"{number:012x}"
        store.write_epochs(storage, trial_id, records)
        store.write_trial(storage, replace(ROW, trial_id=trial_id, no=number + 1, nepoch=epochs))
        storage.backend.write(storage.weights(trial_id), b"0")


def read(folder: Path, way: str) -> tuple[float, float, int]:
    """Seconds of one way to read, the largest resident memory in MiB, and the rows that were read."""
    program = RUN.format(expression=READ[way])
    output = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak, rows = output.stdout.split()
    return float(seconds), int(peak) / 1024, int(rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(describe_machine(), end="\n\n")
    print("| files | way | rows | n | s | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for trials in options.trials:
        with tempfile.TemporaryDirectory() as name:
            fill(Path(name), trials, options.epochs)
            for way in READ:
                print_line(Path(name), way, way, 1 if way == "one file" else trials, options.repeats)
            with patch.object(compaction, "_SETTLED", 0.0), patch.object(compaction, "_WORTH", 1):
                store.compact(Storage.at(name))
            for way in COPIED:
                print_line(Path(name), way, f"{way}, copied", trials, options.repeats)
    return 0


def print_line(folder: Path, way: str, title: str, files: int, repeats: int) -> None:
    """Measures one way to read, and prints its line of the table."""
    seconds, peaks, rows = zip(*(read(folder, way) for _ in range(repeats)), strict=True)
    columns = f"{rows[0]:,} | {repeats} | {format_spread(seconds)} | {format_spread(peaks)}"
    print(f"| {files:,} | {title} | {columns} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
