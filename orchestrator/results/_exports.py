"""Results for programs, with every digit: CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.records import TrialRecord
from orchestrator.results.evidence.comparisons import summarize_comparisons
from orchestrator.results.evidence.conclusions import conclude
from orchestrator.results.field_tables import find_figure
from orchestrator.results.paper_table import PaperTable, Row, build_paper_table
from orchestrator.results.store import TRIAL_COLUMNS
from orchestrator.results.summary import (
    DIFFERENCE,
    Comparison,
    Group,
    PairTable,
    Statistic,
    compare_by_table,
    group_tables,
)
from orchestrator.study.stored_studies import StudyRows


def render_csv(parts: Sequence[StudyRows]) -> str:
    """One row per trial, even if it belongs to several studies."""
    out = io.StringIO()
    names = [*TRIAL_COLUMNS, "setting"]
    writer = csv.DictWriter(out, names, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    found = {id(row): {**_plain(row), "setting": group.label} for _, _, group in _groups(parts) for row in group.rows}
    writer.writerows(found.values())
    return out.getvalue()


def _groups(parts: Sequence[StudyRows]) -> Iterator[tuple[StudyRows, PairTable, Group]]:
    for part in parts:
        for table in group_tables(part.rows):
            yield from ((part, table, group) for group in table.groups)


def render_json(parts: Sequence[StudyRows]) -> str:
    """What each study shows, and the tables with every digit: the paper's, comparisons, each pair with its trials."""
    data = [
        _table_json(part, table, entries)
        for part in parts
        for table, entries in compare_by_table(group_tables(part.rows))
    ]
    papers = [(part, build_paper_table(part.rows)) for part in parts]
    found = {
        "conclusions": [{"study": part.study, **asdict(conclude(part.rows, table.names))} for part, table in papers],
        "paper_tables": [{"study": part.study, **_paper_json(table)} for part, table in papers],
        "comparisons": [line for part in parts for line in summarize_comparisons(part.rows, part.study)],
        "tables": data,
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _paper_json(table: PaperTable) -> dict[str, Any]:
    return {
        "columns": [{"name": column.name, **asdict(column)} for column in table.columns],
        "rows": [_row_json(row) for row in table.rows],
        "settings": [asdict(shared) for shared in table.shared],
    }


def _row_json(row: Row) -> dict[str, Any]:
    cells = {
        metric: [{**figures, "mark": cell.mark} if (figures := _figures(cell.statistic)) else None for cell in own]
        for metric, own in row.cells.items()
    }
    return {"name": row.name, "method": row.method, "settings": dict(row.settings), "cells": cells}


def _table_json(part: StudyRows, table: PairTable, entries: Sequence[Comparison]) -> dict[str, Any]:
    return {
        "study": part.study,
        "title": table.title,
        "dataset": table.dataset,
        "student": table.student,
        "teacher": table.teacher,
        "groups": [_group_json(entry) for entry in entries],
    }


def _group_json(entry: Comparison) -> dict[str, Any]:
    group = entry.group
    return {
        "label": group.label,
        **{column: _figures(group.statistic(column)) for column in ("acc", "last_acc", "selected_acc")},
        "difference": _figures(entry.difference(DIFFERENCE)),
        "published": _published_json(group),
        "trials": [_plain(row) for row in group.rows],
    }


def _published_json(group: Group) -> dict[str, Any] | None:
    figure = find_figure(group.rows[0])
    return {"acc": figure.acc, **asdict(figure.source)} if figure else None


def _figures(found: Statistic | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    low, high = found.interval() or (None, None)
    return {**asdict(found), "low": low, "high": high}


def _plain(row: TrialRecord) -> dict[str, Any]:
    end = row.end_time.isoformat() if row.end_time else None
    return {**row.to_row(), "start_time": row.start_time.isoformat(), "end_time": end}
