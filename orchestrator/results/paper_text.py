"""The paper's table as text for a terminal and as Markdown; what its cells, columns and notes say in any format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from orchestrator import columns, markdown, models
from orchestrator.data.registry import title_of
from orchestrator.results.paper_table import COLUMN_GROUPS, Cell, Column, Mark, PaperTable, SharedSetting
from orchestrator.results.rounding import format_mean

EMPTY = "-"
_CAPTION = (
    "Test accuracy in %: mean ± sample standard deviation (number of runs). "
    "The best epoch is picked on the test set, which is optimistic."
)
_SYMBOLS = {Mark.BEST: "*", Mark.TIED: "≈", Mark.UNKNOWN: "?"}
_MOST_COLUMNS = 6  # in a table in Markdown
_NAME = 3  # a third of a line is always left for the names of rows

Key = tuple[str, int]  # one column of numbers: a metric, and the number of a pair


def render_text(table: PaperTable, width: int | None) -> str:
    """Blocks of columns, each no wider than `width`, and the notes below them."""
    blocks = [_align(table, keys, width) for keys in split_columns(table, lambda keys: _fits(table, keys, width))]
    notes = "\n".join(columns.wrapped(note, width) for note in describe(table, _SYMBOLS))
    return "\n\n".join([*blocks, notes])


def render_markdown(table: PaperTable) -> str:
    """The same in Markdown, where the best of a column is bold."""
    symbols = {**_SYMBOLS, Mark.BEST: "bold"}
    blocks = []
    for keys in split_columns(table, lambda keys: len(keys) <= _MOST_COLUMNS):
        header, rows = _grid(table, keys, lambda cell: _format_in_markdown(cell, symbols, table))
        escaped = [[markdown.escape(name), *cells] for name, *cells in rows]
        blocks.append(markdown.format_table(list(map(markdown.escape, header)), escaped))
    notes = "\n".join(f"- {markdown.escape(note)}" for note in describe(table, symbols))
    return "\n\n".join([*blocks, notes])


def split_columns(table: PaperTable, fits: Callable[[Sequence[Key]], bool]) -> list[list[Key]]:
    """All columns of numbers if they fit side by side, else each group of them by itself, in parts that fit."""
    pairs = range(len(table.columns))
    every = [(metric, number) for metric in table.metrics for number in pairs]
    if fits(every):
        return [every] if every else []
    parts = []
    for metric in table.metrics:
        keys = [(metric, number) for number in pairs]
        count = len(_fill(keys, fits, len(keys)))
        parts += _fill(keys, fits, -(-len(keys) // count))  # as many in each part
    return parts


def _fill(keys: Sequence[Key], fits: Callable[[Sequence[Key]], bool], most: int) -> list[list[Key]]:
    """Columns in parts that fit, each with at most `most` of them, and at least one."""
    parts: list[list[Key]] = [[]]
    for key in keys:
        if parts[-1] and (len(parts[-1]) == most or not fits([*parts[-1], key])):
            parts.append([])
        parts[-1].append(key)
    return parts


def name_column(column: Column) -> tuple[str, str, str]:
    """What stands above a column: dataset, teacher and student."""
    teacher = models.title(column.teacher) if column.teacher else EMPTY
    return title_of(column.dataset), teacher, models.title(column.student)


def find_symbol(cell: Cell, table: PaperTable, symbols: Mapping[Mark, str]) -> str:
    """What stands next to a cell. If nothing can be told of any, a note says so once."""
    is_shown = cell.mark and (cell.mark is not Mark.UNKNOWN or _tells_any(table))
    return symbols.get(cell.mark, "") if cell.mark and is_shown else ""


def _tells_any(table: PaperTable) -> bool:
    return not table.marks.isdisjoint((Mark.TIED, Mark.WORSE))


# What stands below a table.


def describe(table: PaperTable, symbols: Mapping[Mark, str]) -> Iterator[str]:
    """What the numbers and marks mean, which settings no row names, and what was left out."""
    yield _CAPTION
    if Mark.BEST in table.marks:
        yield _describe_marks(table, symbols)
    if table.shared:
        yield f"Settings: {'; '.join(_describe_setting(table, shared) for shared in table.shared)}."
    if table.left_out:
        shown, count = len(table.rows), len(table.rows) + table.left_out
        yield f"{shown} of {count:,} rows, those with the best last epoch; every other --format has all of them."


def _describe_marks(table: PaperTable, symbols: Mapping[Mark, str]) -> str:
    parts = [f"{symbols[Mark.BEST]}: best of its column"]
    interval = "the 95 % interval of the paired difference over shared seeds"
    if not _tells_any(table):
        parts.append("no difference can be told from chance (fewer than two shared seeds, or equal differences)")
    else:
        if Mark.TIED in table.marks:
            parts.append(f"{symbols[Mark.TIED]}: not distinguishable from it ({interval} contains 0)")
        else:
            parts.append(f"no mark: differs from it ({interval} does not contain 0)")
        if Mark.UNKNOWN in table.marks:
            parts.append(f"{symbols[Mark.UNKNOWN]}: cannot be told (fewer than two shared seeds, or equal differences)")
        parts.append("not corrected for the number of comparisons")
    return f"{'; '.join(parts)}."


def _describe_setting(table: PaperTable, shared: SharedSetting) -> str:
    """Like `lr = 0.05`, or `lr = 0.05, but 0.01 for ResNet20>>8/Digits` where it is not the same in all columns."""
    pairs: dict[str, list[str]] = {}
    for value, column in zip(shared.values, table.columns, strict=True):
        if value is not None:
            pairs.setdefault(value, []).append(column.name)
    usual, *others = sorted(pairs, key=lambda value: -len(pairs[value]))
    exceptions = " and ".join(f"{value} for {', '.join(pairs[value])}" for value in others)
    owners = f" of {', '.join(shared.methods)}" if shared.methods else ""
    return f"{shared.name}{owners} = {usual}" + (f", but {exceptions}" if exceptions else "")


# Cells and lines.


def format_cell(cell: Cell) -> str:
    """Like `90.8 ± 1.6 (5)`."""
    return f"{format_mean(cell.statistic)} ({cell.statistic.n})" if cell.statistic else EMPTY


def _format_in_text(cell: Cell, table: PaperTable) -> str:
    symbol = find_symbol(cell, table, _SYMBOLS)
    return f"{format_cell(cell)} {symbol}" if symbol else format_cell(cell)


def _format_in_markdown(cell: Cell, symbols: Mapping[Mark, str], table: PaperTable) -> str:
    if cell.mark is Mark.BEST:
        return f"**{format_cell(cell)}**"
    return markdown.escape(_format_in_text(cell, table))


def _grid(table: PaperTable, keys: Sequence[Key], form: Callable[[Cell], str]) -> tuple[list[str], list[list[str]]]:
    """One header line and the rows."""
    header = ["", *(f"{COLUMN_GROUPS[metric]}, {table.columns[number].name}" for metric, number in keys)]
    return header, [[row.name, *(form(row.cells[metric][number]) for metric, number in keys)] for row in table.rows]


def _stack(table: PaperTable, keys: Sequence[Key]) -> tuple[list[list[str]], list[list[str]]]:
    """Several header lines, each cell above its column, and the rows."""
    _, rows = _grid(table, keys, lambda cell: _format_in_text(cell, table))
    groups = [metric for metric, _ in keys]
    firsts = [COLUMN_GROUPS[each] if each not in groups[:no] else "" for no, each in enumerate(groups)]
    names = zip(*(name_column(table.columns[number]) for _, number in keys), strict=True)
    lines = [[title, *line] for title, line in zip(("dataset", "teacher", "student"), names, strict=True)]
    return [["", *firsts], *(line for line in lines if any(cell != EMPTY for cell in line[1:]))], rows


def _fits(table: PaperTable, keys: Sequence[Key], width: int | None) -> bool:
    if width is None:
        return True
    header, rows = _stack(table, keys)
    names, *numbers = columns.measure([*header, *rows])
    return sum(numbers) + 2 * len(numbers) + min(names, width // _NAME) <= width


def _align(table: PaperTable, keys: Sequence[Key], width: int | None) -> str:
    if _fits(table, keys, width):
        stacked, rows = _stack(table, keys)
        return columns.table(stacked[0], [*stacked[1:], [""] * len(stacked[0]), *rows], width)
    header, rows = _grid(table, keys, lambda cell: _format_in_text(cell, table))
    return columns.table(header, rows, width)
