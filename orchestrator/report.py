"""Result tables in the published form: one per pair and dataset, a row a run, mean ± standard deviation with n."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from orchestrator.datasets import DATASETS
from orchestrator.records import State, TrialRecord
from orchestrator.summary import Group, tables

PUBLISHED_COLUMNS = (
    *("no", "method", "dataset", "student", "teacher", "start_time"),
    *("acc", "epoch", "nepoch", "lr", "batch_size"),
)
FORMATS = ("table", "markdown", "csv", "json")


def render(rows: Sequence[TrialRecord], form: str = "table") -> str:
    """The rows as text, in one of `FORMATS`."""
    return _RENDERERS[form](rows)


def _render_text(rows: Sequence[TrialRecord]) -> str:
    return _blocks(rows, aligned, "", "")


def _render_markdown(rows: Sequence[TrialRecord]) -> str:
    return _blocks(rows, _markdown, "### ", "- ")


def _blocks(
    rows: Sequence[TrialRecord], grid: Callable[[Sequence[str], list[list[str]]], str], heading: str, bullet: str
) -> str:
    blocks = []
    for table in tables(rows):
        ordered = [row for group in table.groups for row in group.rows]
        cells = [[str(no), *_cells(row)] for no, row in enumerate(ordered, 1)]
        lines = [bullet + _mean_line(group) for group in table.groups]
        lines += [
            f"{bullet}{row.trial_id} seed {row.seed} {row.state}{_reason(row)}" for row in ordered if not _done(row)
        ]
        body = f"{heading}{table.title}\n\n{grid(PUBLISHED_COLUMNS, cells)}\n\n" + "\n".join(lines)
        blocks.append(body)
    return "\n\n".join(blocks) + "\n" if blocks else "no trials yet\n"


def _done(row: TrialRecord) -> bool:
    return row.state is State.FINISHED


def _reason(row: TrialRecord) -> str:
    # An error's text may have lines; a table's row has one.
    return f": {' '.join(row.error.split())}" if row.error else ""


def _mean_line(group: Group) -> str:
    parts = [
        f"{name} {group.statistic(column) or '-'}" for name, column in (("acc", "acc"), ("last epoch", "last_acc"))
    ]
    if selected := group.statistic("selected_acc"):
        parts.append(f"selected on the held-out split {selected}")
    return f"{group.label}: " + ", ".join(parts) + (f"; {left}" if (left := data_cut(group.rows[0])) else "")


def data_cut(row: TrialRecord) -> str:
    """What part of the dataset was used, where that is not all of it; empty where it is."""
    facts, recipe = DATASETS[row.dataset], json.loads(row.recipe)
    train = (recipe.get("limit_train") or facts.train) - (recipe.get("holdout") or 0)
    test = recipe.get("limit_test") or facts.test
    if (train, test) == (facts.train, facts.test):
        return ""
    return f"trained on {train:,} of {facts.train:,} images, tested on {test:,} of {facts.test:,}"


def _cells(row: TrialRecord) -> list[str]:
    return [_cell(column, getattr(row, column)) for column in PUBLISHED_COLUMNS[1:]]


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:.2f}" if column == "acc" else str(value)  # a setting is shown as it was set


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, *rows]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _markdown(header: Sequence[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _render_csv(rows: Sequence[TrialRecord]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(TrialRecord.__slots__), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(_plain(row) for row in rows)
    return out.getvalue()


def _render_json(rows: Sequence[TrialRecord]) -> str:
    data = {
        "tables": [
            {
                "title": table.title,
                "dataset": table.dataset,
                "student": table.student,
                "teacher": table.teacher,
                "groups": [_group_json(group) for group in table.groups],
            }
            for table in tables(rows)
        ]
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _group_json(group: Group) -> dict[str, Any]:
    columns = ("acc", "last_acc", "selected_acc")
    found = {column: group.statistic(column) for column in columns}
    return {
        "label": group.label,
        **{column: asdict(statistic) if statistic else None for column, statistic in found.items()},
        "trials": [_plain(row) for row in group.rows],
    }


def _plain(row: TrialRecord) -> dict[str, Any]:
    end = row.end_time.isoformat() if row.end_time else None
    return {**asdict(row), "start_time": row.start_time.isoformat(), "end_time": end}


_RENDERERS: Mapping[str, Callable[[Sequence[TrialRecord]], str]] = {
    "table": _render_text,
    "markdown": _render_markdown,
    "csv": _render_csv,
    "json": _render_json,
}
