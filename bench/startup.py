"""What `kdctl --help` costs, compared with the minimum: Python with Click.

python bench/startup.py [--repeats 25]

Whole processes, in alternating runs: the console script, `python -c "import click"`, and Python alone. The ratio is
that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from shared.machine import describe_machine, format_spread

COMMANDS = {
    "kdctl --help": [str(Path(sys.executable).with_name("kdctl")), "--help"],
    "import click": [sys.executable, "-c", "import click"],
    "Python alone": [sys.executable, "-c", "pass"],
}


def measure_seconds(command: list[str]) -> float:
    """Measures the wall time of a process, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    for command in COMMANDS.values():  # so that no run waits for files that were not read yet
        measure_seconds(command)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.repeats):
        for name, command in COMMANDS.items():
            seconds[name].append(1000 * measure_seconds(command))
    base = statistics.median(seconds["import click"])
    print(describe_machine(), end="\n\n")
    print("| command | n | ms | times `import click` |")
    print("| --- | --- | --- | --- |")
    for name, found in seconds.items():
        print(f"| {name} | {options.repeats} | {format_spread(found)} | {statistics.median(found) / base:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
