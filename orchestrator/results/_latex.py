"""The paper's table in LaTeX: needs the package booktabs, and nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from orchestrator.results.paper_table import COLUMN_GROUPS, Cell, Mark, PaperTable
from orchestrator.results.paper_text import EMPTY, Key, describe, find_symbol, name_column, split_columns
from orchestrator.results.rounding import format_mean
from orchestrator.text import printable

_MOST_COLUMNS = 3  # of numbers side by side on a page
_SYMBOLS = {Mark.BEST: "Bold", Mark.TIED: "†", Mark.UNKNOWN: "?"}
# What a character is in text; any other ASCII character is itself.
_ESCAPES: Mapping[str, str] = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "'": r"\textquotesingle{}",
    # After the end of a line, these would be its options.
    "*": "{*}", "[": "{[}", "]": "{]}",
    "±": r"$\pm$", "†": r"$^\dagger$", "−": "$-$", "×": r"$\times$", "←": r"$\leftarrow$", "…": r"\dots{}",
    "–": r"\textendash{}",
}  # fmt: skip


def escape(text: str) -> str:
    """Any text as one line that LaTeX prints as it is; characters that its fonts lack become their code points."""
    escaped = "".join(map(_escape, printable(" ".join(text.split()))))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash


def _escape(char: str) -> str:
    if char in _ESCAPES or char.isascii():
        return _ESCAPES.get(char, char)
    letter = unicodedata.normalize("NFD", char)[0]  # without its accent
    is_accented = letter.isascii() and char <= "\u00ff"
    return char if is_accented else f"{{[}}U+{ord(char):04X}{{]}}"


def render_latex(table: PaperTable, label: str) -> str:
    """`table` environments with captions: one, or several where the columns do not fit side by side on a page."""
    parts = split_columns(table, lambda keys: len(keys) <= _MOST_COLUMNS)
    captions = [" ".join(escape(note) for note in describe(table, _SYMBOLS))]
    captions += [f"Table~\\ref{{tab:{label}}}, continued."] * (len(parts) - 1)
    labels = [label, *(f"{label}-{number}" for number in range(2, len(parts) + 1))]
    found = [
        [
            *(
                "\\begin{table}",
                "\\centering",
                f"\\caption{{{caption}}}",
                f"\\label{{tab:{name}}}",
                "\\par\\medskip\\small",
            ),
            *_format_part(table, keys),
            "\\end{table}",
        ]
        for keys, caption, name in zip(parts, captions, labels, strict=True)
    ]
    return "\n\n".join(["% \\usepackage{booktabs}", *("\n".join(lines) for lines in found)])


def _format_part(table: PaperTable, keys: Sequence[Key]) -> Iterator[str]:
    yield f"\\begin{{tabular}}{{l{'l' * len(keys)}}}"
    yield "\\toprule"
    yield from _format_header(table, keys)
    yield "\\midrule"
    teachers = [row for row in table.rows if row.is_teacher]
    for rows in filter(None, (teachers, [row for row in table.rows if not row.is_teacher])):
        if teachers and rows is not teachers:
            yield "\\midrule"
        for row in rows:
            cells = (_format_cell(row.cells[metric][number], table) for metric, number in keys)
            yield _join([escape(row.name), *cells])
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _format_header(table: PaperTable, keys: Sequence[Key]) -> Iterator[str]:
    groups = [(COLUMN_GROUPS[metric], len(list(own))) for metric, own in groupby(keys, key=lambda key: key[0])]
    yield _join(["", *(f"\\multicolumn{{{count}}}{{c}}{{{name}}}" for name, count in groups)])
    ends = [1 + sum(count for _, count in groups[: number + 1]) for number in range(len(groups))]
    yield " ".join(f"\\cmidrule(lr){{{end - count + 1}-{end}}}" for end, (_, count) in zip(ends, groups, strict=True))
    names = zip(*(name_column(table.columns[number]) for _, number in keys), strict=True)
    for title, line in zip(("dataset", "teacher", "student"), names, strict=True):
        if any(name != EMPTY for name in line):
            yield _join([title, *map(escape, line)])


def _join(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _format_cell(cell: Cell, table: PaperTable) -> str:
    """Like `$90.8 \\pm 1.6$ (5)`."""
    if cell.statistic is None:
        return "--"
    number = format_mean(cell.statistic).replace("±", "\\pm").replace("−", "-")
    n = f"({cell.statistic.n})"
    if cell.mark is Mark.BEST:
        return f"$\\mathbf{{{number}}}$ \\textbf{{{n}}}"
    return f"${number}$ {n}{escape(find_symbol(cell, table, _SYMBOLS))}"
