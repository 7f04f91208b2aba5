"""The simulations behind the statistics of docs/report.md: closed forms, and the figures that the page prints."""

from __future__ import annotations

import re
from pathlib import Path

import intervals
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
REPEATS = 20_000


def read_cells(study: str) -> list[float]:
    """The figures of a line of the page's tables."""
    return [float(cell) for cell in re.search(rf"^\| {study} \| (.*) \|$", PAGE, re.MULTILINE)[1].split(" | ")]


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("share", intervals.SHARES)
def test_one_teacher_has_a_closed_form(seeds: int, share: float) -> None:
    simulated = intervals.simulate_coverage(seeds, 1, share, REPEATS)
    assert simulated == pytest.approx(intervals.compute_coverage(seeds, share), abs=0.015)


@pytest.mark.parametrize("layout", intervals.LAYOUTS)
def test_the_page_has_the_coverage(layout: tuple[int, int]) -> None:
    found = [intervals.simulate_coverage(*layout, share, REPEATS) for share in intervals.SHARES]
    assert read_cells(intervals.describe_layout(*layout)) == pytest.approx(found, abs=0.02)


@pytest.mark.parametrize(("methods", "seeds"), [(2, 3), (4, 5)])
def test_the_page_has_the_false_findings(methods: int, seeds: int) -> None:
    comparisons, *shown = read_cells(intervals.describe_size(methods, seeds))
    assert comparisons == methods * (methods + 1) / 2
    assert shown == pytest.approx(intervals.simulate_false_findings(methods, seeds, 400), abs=0.1)
    assert shown[1] <= 0.055


def test_tables_have_every_study() -> None:
    assert intervals.coverage_table(10).count("\n") == len(intervals.LAYOUTS) + 1
    assert intervals.false_finding_table(10).count("\n") == len(intervals.FAMILIES) + 1
