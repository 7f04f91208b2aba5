"""What planning costs: `kdctl plan FILE --json > /dev/null` as a whole command, and loading and planning alone.

python bench/planning.py [--trials 100 1000 10000 100000] [--repeats 3]

Every run is a new process, and the two kinds alternate. The study is one experiment with five axes (2 students × 5
values of lr × 2 of weight_decay × seeds), and the storage is empty. `peak` is the largest resident memory of the
process, including that of a process that plans nothing. The time alone is that of `load_study` and `make_plan`,
without Python's start and imports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared.machine import describe_machine, format_spread

STUDY = """
study: planning
experiments:
  - method: base
    dataset: digits
    student: [resnet_32_8, resnet_32_14]
    lr: [0.1, 0.05, 0.02, 0.01, 0.005]
    weight_decay: [1e-4, 5e-4]
    seed: {seeds}
"""
SHARED = 20  # trials of one seed
ALONE = """
import resource, sys, time
from orchestrator.study.plan import make_plan
from orchestrator.study.reader import load_study
start = time.perf_counter()
plan = make_plan(load_study(sys.argv[1]))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(plan.trials))
"""


def time_command(file: Path) -> tuple[float, float]:
    """Seconds of `kdctl plan FILE --json`, and its largest resident memory in MiB."""
    line = [sys.executable, "-m", "orchestrator.cli", "plan", str(file), "--json", "--storage", str(file.parent / "no")]
    start = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return seconds, usage.ru_maxrss / 1024


def time_alone(file: Path, trials: int) -> tuple[float, float]:
    """Seconds of `load_study` and `make_plan` in a fresh process, and its largest resident memory in MiB."""
    output = subprocess.run([sys.executable, "-c", ALONE, str(file)], check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak, found = output.stdout.split()
    if int(found) != trials:
        raise RuntimeError(f"the plan has {found} trials; expected {trials}")
    return float(seconds), int(peak) / 1024


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(describe_machine(), end="\n\n")
    print("| trials | n | `kdctl plan`, s | its peak, MiB | load and plan alone, s | its peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "planning.yaml")
        for trials in options.trials:
            file.write_text(STUDY.format(seeds=list(range(trials // SHARED))))
            pairs = [(time_command(file), time_alone(file, trials)) for _ in range(options.repeats)]
            columns = [format_spread([pair[way][figure] for pair in pairs]) for way in (0, 1) for figure in (0, 1)]
            print(f"| {trials:,} | {options.repeats} | {' | '.join(columns)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
