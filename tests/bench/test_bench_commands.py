"""The measurements of the commands run in a tiny form and print their tables; no figure is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def run_table(name: str, *options: str) -> tuple[str, list[list[str]]]:
    """Runs a benchmark that must succeed; returns its line about the machine, and the cells of its table."""
    command = [sys.executable, str(BENCH / name), *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=250).stdout
    lines = [line for line in output.splitlines() if line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len(cells) > 2 and set(cells[1]) == {"---"}
    assert {len(row) for row in cells} == {len(cells[0])}
    return lines[0], cells[2:]


def test_startup() -> None:
    machine, rows = run_table("startup.py", "--repeats", "1")
    assert "cores" in machine and all(name in machine for name in ("Python", "torch", "ray", "pyarrow"))
    assert [row[0] for row in rows] == ["kdctl --help", "import click", "Python alone"]


def test_planning() -> None:
    _, rows = run_table("planning.py", "--trials", "20", "40", "--repeats", "1")
    assert [row[:2] for row in rows] == [["20", "1"], ["40", "1"]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory in /proc")
def test_reading() -> None:
    _, rows = run_table("reading.py", "--trials", "2", "--epochs", "3", "--repeats", "1")
    rows_of = {row[1]: row[2] for row in rows}
    assert rows_of.pop("read_trials") == rows_of.pop("read_states") == "2"
    assert rows_of.pop("read_trials, copied") == rows_of.pop("read_states, copied") == "2"
    assert set(rows_of.values()) == {"6"} and {"query", "query, copied"} < rows_of.keys()


def test_query() -> None:
    _, rows = run_table("query.py", "--trials", "2", "--epochs", "3", "--repeats", "1")
    assert [row[2:5] for row in rows] == [
        ["mean of each method", "1", "1"],
        ["learning curve", "3", "1"],
        ["join", "3", "1"],
    ]


@pytest.mark.timeout(290)
def test_overhead() -> None:
    options = ("--trials", "2", "--function-trials", "0", "--repeats", "1", "--images", "32")  # it takes seconds
    _, rows = run_table("overhead.py", *options)
    assert [row[:3] for row in rows] == [
        ["kdctl launch", "2", "1"],
        ["raw class, reused", "2", "1"],
    ]


def test_methods() -> None:
    small = ("--images", "10", "--batch-size", "10", "--student", "resnet_32_8", "--teacher", "resnet_32_8")
    _, rows = run_table(
        "methods.py", *small, "--repeats", "1", "--device", "cpu", "--methods", "base", "dkd", "rkd", "vid"
    )
    assert [row[:2] for row in rows] == [["dkd", "table"], ["rkd", "table"], ["vid", "live"]]
