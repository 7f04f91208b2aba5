"""Result tables: that of a paper, then intervals, differences to `base` and published figures, then single runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator import columns, markdown
from orchestrator.data.registry import stored_facts
from orchestrator.records import State, TrialRecord
from orchestrator.results._exports import render_csv, render_json
from orchestrator.results._latex import render_latex
from orchestrator.results.evidence.conclusions import conclude
from orchestrator.results.field_tables import describe_figures, find_figure
from orchestrator.results.paper_table import COLUMN_GROUPS, PaperTable, Row, build_paper_table
from orchestrator.results.paper_text import EMPTY, render_markdown, render_text
from orchestrator.results.rounding import MINUS, format_difference, format_interval
from orchestrator.results.summary import DIFFERENCE, Comparison, PairTable, group_tables
from orchestrator.study import labels
from orchestrator.study.stored_studies import StudyRows

MAX_ROWS = 40  # of the table of a paper on a terminal
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
    """The rows of some studies as text, in a `ResultsFormat`: first the table of the paper, then what it shows.

    If `runs`, the single runs follow; Markdown, CSV and JSON always list them. A `table` is no wider than `width`, and
    has at most `MAX_ROWS` rows. Raises StorageError where a row is damaged.
    """
    if form == "table":
        return _join_studies(parts, "", lambda part: _render_text(part, runs, width))
    if form == "markdown":
        return _join_studies(parts, "## ", _render_markdown)
    return _RENDERERS[form](parts)


def _join_studies(parts: Sequence[StudyRows], heading: str, render_part: Callable[[StudyRows], Iterator[str]]) -> str:
    """The blocks of each study, which has a heading if there are several."""
    blocks = []
    for part in parts:
        if len(parts) > 1:
            name = f"Study {part.study}" if part.study else "In no study's last plan"
            blocks.append(f"{heading}{name}")
        blocks += render_part(part)
    return "\n\n".join(blocks) + "\n" if blocks else "no trials yet\n"


def _render_text(part: StudyRows, runs: bool, width: int | None) -> Iterator[str]:
    whole = build_paper_table(part.rows)
    table = whole.keep_best(MAX_ROWS)
    if table.columns:
        yield render_text(table, width)
    yield "\n".join(columns.wrapped(text, width) for text in conclude(part.rows, whole.names).sentences)
    for heading, header, rows in _list_details(table):
        yield f"{columns.wrapped(heading, width)}\n\n{columns.table(header, rows, width)}"
    for pair in group_tables(part.rows) if runs else ():
        yield f"{columns.wrapped(_heading(pair), width)}\n\n{columns.table(*_runs_grid(pair), width)}"
    if notes := list(_list_notes(part, table)):
        yield "\n".join(columns.wrapped(note, width) for note in notes)


def _render_markdown(part: StudyRows) -> Iterator[str]:
    table = build_paper_table(part.rows)
    if table.columns:
        yield render_markdown(table)
    yield "\n".join(f"- {markdown.escape(text)}" for text in conclude(part.rows, table.names).sentences)
    for heading, header, rows in _list_details(table):
        yield f"### {markdown.escape(heading)}\n\n{_markdown(header, rows)}"
    for pair in group_tables(part.rows):
        yield f"### {markdown.escape(_heading(pair))}\n\n{_markdown(*_runs_grid(pair))}"
    if notes := list(_list_notes(part, table)):
        yield "\n".join(f"- {markdown.escape(note)}" for note in notes)


def _render_latex(parts: Sequence[StudyRows]) -> str:
    """One table for each study, labelled with its name."""
    made = [
        render_latex(table, f"results-{part.study}" if part.study else "results")
        for part in parts
        if (table := build_paper_table(part.rows)).columns
    ]
    return "\n\n".join(made) + "\n" if made else "% no trials yet\n"


def _heading(table: PairTable) -> str:
    return table.title if len(table.groups) == 1 else table.name  # several have their means in the table above


# What is not in the table of the paper.


def _list_details(table: PaperTable) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The heading, header and rows of each pair: counts, intervals, differences; no column is without values."""
    epochs = (COLUMN_GROUPS[metric] for metric in table.metrics)
    header = ["", "finished", *epochs, f"last epoch {MINUS} base", "published"]
    for number, column in enumerate(table.columns):
        found = [(row, entry) for row in table.rows if (entry := row.comparisons[number])]
        is_whole = all(len(entry.group.finished) == len(entry.group.rows) for _, entry in found)
        rows = [[row.name, *_describe_entry(row, entry, number, is_whole)] for row, entry in found]
        kept = [0, *(no for no in range(1, len(header)) if any(row[no] for row in rows))]
        if len(kept) > 1:
            cells = [[row[no] or EMPTY for no in kept] for row in rows if any(row[1:])]
            yield f"{column.name}, 95 % intervals", [header[no] for no in kept], cells


def _describe_entry(row: Row, entry: Comparison, number: int, is_whole: bool) -> Iterator[str]:
    yield "" if is_whole else f"{len(entry.group.finished)} of {len(entry.group.rows)}"
    for cells in row.cells.values():
        statistic = cells[number].statistic
        yield format_interval(statistic) if statistic else ""
    difference = entry.difference(DIFFERENCE)
    yield f"{format_difference(difference)} ({difference.n})" if difference else ""
    figure = find_figure(entry.group.rows[0])
    yield f"{figure.acc:.2f} ({figure.source.name})" if figure else ""


def _runs_grid(table: PairTable) -> tuple[Sequence[str], list[list[str]]]:
    rows = [row for group in table.groups for row in group.rows]
    return PUBLISHED_COLUMNS, [[str(no), *_cells(row)] for no, row in enumerate(rows, 1)]


def _list_notes(part: StudyRows, table: PaperTable) -> Iterator[str]:
    """Which part of the data was used, where published figures come from, and which trials did not finish."""
    yield from _list_subsets(table)
    groups = [entry.group for row in table.rows for entry in row.comparisons if entry]
    yield from describe_figures(list({id(group): group for group in groups}.values()))
    for row in part.rows:
        if row.state is not State.FINISHED:
            # The text of an error may have several lines; an entry of a list must have one.
            reason = f": {' '.join(row.error.split())}" if row.error else ""
            yield f"{row.trial_id} {labels.title(row)} {row.state}{reason}"


def _list_subsets(table: PaperTable) -> Iterator[str]:
    """Which part of its dataset each pair used, if not all of it; a teacher is named where it used another part."""
    every = [column.name for column in table.columns]
    found: dict[str, dict[str, None]] = {}
    for row in sorted(table.rows, key=lambda row: row.is_teacher):
        for name, entry in zip(every, row.comparisons, strict=True):
            text = describe_subset(entry.group.rows[0]) if entry else ""
            if text and name not in found.setdefault(text, {}):
                found[text][f"teacher of {name}" if row.is_teacher else name] = None
    for text, names in found.items():
        yield text if names.keys() == set(every) else f"{', '.join(names)}: {text}"


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


_RENDERERS: Mapping[str, Callable[[Sequence[StudyRows]], str]] = {
    "latex": _render_latex,
    "csv": render_csv,
    "json": render_json,
}
