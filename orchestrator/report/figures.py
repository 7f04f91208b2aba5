"""The figures of a report on their own: as objects for a notebook, and as files for a paper."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator.report import _figures, _sweeps
from orchestrator.report._charts import Chart
from orchestrator.report._export import FORMS, render_file
from orchestrator.report.content import Facts, find_facts
from orchestrator.storage.layout import Storage
from orchestrator.text import looking_once


def draw(storage: str | Path, study: str | None = None) -> dict[str, Figure]:
    """The figures of a study's report as matplotlib figures, by the names that their files have.

    `study` is a study file or the name of a study; without it, the study that was launched last. Raises KdctlError if
    there is no such study, or no trial.
    """
    facts = find_facts(Storage.at(str(storage)), study)
    return {name: chart.drawing for name, chart in _draw_charts(facts)}


def render_files(facts: Facts) -> dict[str, bytes]:
    """Every figure of a report as SVG, PDF and PNG, name → content."""
    with looking_once():
        charts = list(_draw_charts(facts))
        return {f"{name}.{form}": render_file(chart, form) for name, chart in charts for form in FORMS}


def _draw_charts(facts: Facts) -> Iterator[tuple[str, Chart]]:
    """The charts in the order of the page."""
    found = _figures.group_pairs(facts.ordered)
    figures = chain(
        _figures.draw_comparisons(found), _sweeps.draw_sweeps(found), _figures.draw_learning_curves(facts, found),
        _figures.draw_costs(facts, found),
    )  # fmt: skip
    return (named for figure in figures for named in figure.named_charts())
