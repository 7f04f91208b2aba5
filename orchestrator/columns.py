"""A table for people: on a terminal no wider than the terminal, where a long cell wraps within its own column."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TextIO

from rich.cells import cell_len, chop_cells

_GAP = "  "  # between two columns
_ID = 12  # columns of a trial id, which is not broken as long as all columns fit side by side
_NARROWEST = 4  # columns; a terminal that claims to be narrower is not wrapped for


def width_of(stream: TextIO | None) -> int | None:
    """How many columns a terminal has; None if it is not a terminal, and lines may have any length."""
    with suppress(OSError, ValueError):
        if stream is not None and stream.isatty():
            columns = os.get_terminal_size(stream.fileno()).columns
            return columns if columns > _NARROWEST else None
    return None


def table(header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """The rows below their header, every column as wide as its widest cell.

    With a `width` no line is wider than that: long cells wrap within their columns, at spaces if possible.
    If the columns do not fit side by side, each row becomes a block of lines, one for each cell that is not empty.
    """
    lines = [list(header), *map(list, rows)]
    widths = measure(lines)
    if width is None or _total(widths) <= width:
        return "\n".join(_joined(line, widths) for line in lines)
    least = _least(lines, width)
    if _total(least) <= width:
        return "\n".join(_wrapped_rows(lines, _shared(widths, least, width)))
    return "\n\n".join(_block(header, line, width) for line in lines[1:])


def measure(lines: Iterable[Sequence[str]]) -> list[int]:
    """How wide each column is where no cell wraps."""
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def fits(header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None) -> bool:
    """Whether the columns of a table fit side by side, with cells that wrap at spaces where they have to."""
    return width is None or _total(_least([header, *rows], width)) <= width


def wrapped(text: str, width: int | None) -> str:
    """A text in lines of at most `width` columns; the rest of a broken line keeps its indentation."""
    if width is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _indented(line, width))


def wrap(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` columns, broken at spaces, or within words that are longer than a line."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        *whole, line = _broken(word, width)
        lines += whole
    return [*lines, line]


def _broken(word: str, width: int) -> list[str]:
    return [word] if cell_len(word) <= width else chop_cells(word, max(2, width))


def _indented(line: str, width: int) -> Iterator[str]:
    if cell_len(line) <= width:
        yield line
        return
    indent = line[: len(line) - len(line.lstrip())]
    for part in wrap(line, max(2, width - len(indent))):
        yield indent + part


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _least(lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """How narrow each column may become; a very long word, like a path, may be broken."""
    longest = max(_ID, width // 3)
    return [min(longest, max(map(_longest_word, column))) for column in zip(*lines, strict=True)]


def _longest_word(cell: str) -> int:
    return max(map(cell_len, cell.split()), default=0)


def _shared(widths: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths that fit: the widest columns shrink, and none becomes narrower than its minimum."""
    cap = max(widths)
    while _total(found := [max(low, min(full, cap)) for full, low in zip(widths, least, strict=True)]) > width:
        cap -= 1
    return found


def _wrapped_rows(lines: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    for line in lines:
        cells = [wrap(cell, size) for cell, size in zip(line, widths, strict=True)]
        for number in range(max(map(len, cells))):
            yield _joined([cell[number] if number < len(cell) else "" for cell in cells], widths)


def _block(header: Sequence[str], line: Sequence[str], width: int) -> str:
    left = max(map(cell_len, header))
    right = width - left - len(_GAP)
    if right < width // 2:  # the names would take more space than the values
        return "\n".join(wrapped(f"{name}: {cell}", width) for name, cell in zip(header, line, strict=True) if cell)
    pairs = [(name, part) for name, cell in zip(header, line, strict=True) for name, part in _named(name, cell, right)]
    return "\n".join(_joined(pair, (left, right)) for pair in pairs)


def _named(name: str, cell: str, width: int) -> Iterator[tuple[str, str]]:
    for number, part in enumerate(wrap(cell, width) if cell else ()):
        yield ("" if number else name), part


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (size - cell_len(cell)) for cell, size in zip(cells, widths, strict=True))
    return _GAP.join(padded).rstrip()
