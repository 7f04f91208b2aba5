"""Result tables, one per pair and dataset: a line per setting, mean ± standard deviation with n, then single runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from orchestrator import columns, markdown
from orchestrator.data.registry import stored_facts
from orchestrator.records import State, TrialRecord
from orchestrator.results.field_tables import describe_figures, find_figure
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

PUBLISHED_COLUMNS = (
    *("no", "method", "dataset", "student", "teacher", "start_time"),
    *("acc", "epoch", "nepoch", "lr", "batch_size"),
)


def render(rows: Sequence[TrialRecord], form: str = "table", *, runs: bool = False, width: int | None = None) -> str:
    """The rows of one study as text, see `render_studies`."""
    return render_studies([StudyRows(None, tuple(rows))] if rows else [], form, runs=runs, width=width)


def render_studies(
    parts: Sequence[StudyRows], form: str = "table", *, runs: bool = False, width: int | None = None
) -> str:
    """The rows of some studies as text, in a `ResultsFormat`: per pair first the settings, one line each.

    If `runs`, the single runs follow; the other formats always list them. A `table` is no wider than `width`.
    Raises StorageError where a row is damaged.
    """
    if form == "table":
        return _blocks(parts, lambda header, rows: columns.table(header, rows, width), ("", "", ""), runs)
    return _render_markdown(parts) if form == "markdown" else _RENDERERS[form](parts)


def _render_markdown(parts: Sequence[StudyRows]) -> str:
    return _blocks(parts, _markdown, ("## ", "### ", "- "), True)


def _blocks(
    parts: Sequence[StudyRows],
    grid: Callable[[Sequence[str], list[list[str]]], str],
    marks: tuple[str, str, str],
    runs: bool,
) -> str:
    study_mark, heading, bullet = marks
    blocks = []
    for part in parts:
        if len(parts) > 1:
            name = f"Study {part.study}" if part.study else "In no study's last plan"
            blocks.append(f"{study_mark}{name}")
        found = group_tables(part.rows)
        for table, entries in compare_by_table(found):
            lines = [bullet + line for line in _notes(table)]
            body = [f"{heading}{_heading(table)}", grid(*_settings_grid(entries))]
            body += [grid(*_runs_grid(table))] if runs else []
            blocks.append("\n\n".join([*body, *(["\n".join(lines)] if lines else [])]))
    return "\n\n".join(blocks) + "\n" if blocks else "no trials yet\n"


def _heading(table: PairTable) -> str:
    return table.title if len(table.groups) == 1 else table.name  # each of several has its mean below


def _settings_grid(entries: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """One line per setting; columns without any value are left out."""
    header = ["setting", "n", "acc", "95 % interval", "last epoch", "selected", "last epoch − base, 95 % interval"]
    header += ["published"]
    rows = [[entry.group.label, _count(entry.group), *_means(entry), _published(entry.group)] for entry in entries]
    kept = [no for no in range(len(header)) if no < 5 or any(row[no] != "-" for row in rows)]
    return [header[no] for no in kept], [[row[no] for no in kept] for row in rows]


def _count(group: Group) -> str:
    done, count = len(group.finished), len(group.rows)
    return str(done) if done == count else f"{done} of {count}"


def _means(entry: Comparison) -> Iterator[str]:
    acc, last, selected = (entry.group.statistic(column) for column in ("acc", "last_acc", "selected_acc"))
    difference = entry.difference(DIFFERENCE)
    yield from (_spread(acc), _interval(acc, ".2f"), _spread(last), _spread(selected))
    if difference is None:
        yield "-"
        return
    interval = f" {_interval(difference, '+.2f')}" if difference.std is not None else ""
    yield f"{difference.mean:+.2f}{interval}, n={difference.n}"


def _published(group: Group) -> str:
    """The field's figure for a setting, and whose it is."""
    figure = find_figure(group.rows[0])
    return f"{figure.acc:.2f} ({figure.source.name})" if figure else "-"


def _spread(found: Statistic | None) -> str:
    return "-" if found is None else str(found).partition(" (")[0]


def _interval(found: Statistic | None, form: str) -> str:
    ends = found.interval() if found else None
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]" if ends else "-"


def _runs_grid(table: PairTable) -> tuple[Sequence[str], list[list[str]]]:
    return PUBLISHED_COLUMNS, [[str(no), *_cells(row)] for no, row in enumerate(_ordered(table), 1)]


def _ordered(table: PairTable) -> list[TrialRecord]:
    return [row for group in table.groups for row in group.rows]


def _notes(table: PairTable) -> Iterator[str]:
    """Which part of the data was used, where published figures come from, and which trials did not finish."""
    yield from dict.fromkeys(cut for group in table.groups if (cut := describe_subset(group.rows[0])))
    yield from describe_figures(table.groups)
    for row in _ordered(table):
        if row.state is not State.FINISHED:
            # The text of an error may have several lines; an entry of a list must have one.
            reason = f": {' '.join(row.error.split())}" if row.error else ""
            yield f"{row.trial_id} seed {row.seed} {row.state}{reason}"


def describe_subset(row: TrialRecord) -> str:
    """Which part of the dataset was used; empty if all of it was."""
    facts, recipe = stored_facts(row.dataset, row.recipe), row.recipe
    train = (recipe.get("limit_train") or facts.train) - (recipe.get("holdout") or 0)
    test = recipe.get("limit_test") or facts.test
    if not row.nepoch:  # it was not trained
        return "" if test == facts.test else f"tested on {test:,} of {facts.test:,} images"
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
    return f"{value:.2f}" if column == "acc" else str(value)  # a setting is printed as it was set


def _markdown(header: Sequence[str], rows: list[list[str]]) -> str:
    return markdown.format_table(header, [list(map(markdown.escape, line)) for line in rows])


def _render_csv(parts: Sequence[StudyRows]) -> str:
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


def _render_json(parts: Sequence[StudyRows]) -> str:
    data = [
        _table_json(part, table, entries)
        for part in parts
        for table, entries in compare_by_table(group_tables(part.rows))
    ]
    return json.dumps({"tables": data}, indent=1, ensure_ascii=False) + "\n"


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


_RENDERERS: Mapping[str, Callable[[Sequence[StudyRows]], str]] = {"csv": _render_csv, "json": _render_json}
