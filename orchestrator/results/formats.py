"""Formats the rows of any query: an aligned table for a terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from orchestrator import markdown
from orchestrator.text import printable

MAX_ROWS = 100  # in a table for a terminal
MAX_WIDTH = 120  # of a cell in such a table, in characters
NULL = "-"  # in tables and Markdown; CSV has an empty field, JSON null

_DIGITS = 6  # significant digits of a float in tables and Markdown
_EXACT = 1e15  # above this, not every whole number is a float

Columns = Sequence[Sequence[Any]]  # the values of some rows, column by column


@dataclass(frozen=True, slots=True)
class Heading:
    """The columns of some rows: their unique names, and which of them hold numbers."""

    names: Sequence[str]
    numeric: Sequence[bool]


def write(form: str, heading: Heading, batches: Iterable[Columns], out: TextIO, is_terminal: bool = False) -> int:
    """Writes rows, batch after batch, in any `QueryFormat` but Parquet; control characters are escaped for a terminal.

    Returns the number of rows left out; only a table leaves rows out.
    """
    rows = chain.from_iterable(zip(*batch, strict=True) for batch in batches)
    names, numeric = heading.names, heading.numeric
    if form in ("csv", "tsv", "json"):
        lines = (
            _format_json(names, rows) if form == "json" else _format_csv(names, rows, "\t" if form == "tsv" else ",")
        )
        visible = {**_VISIBLE, ord("\t"): "\t"} if form == "tsv" else _VISIBLE
        out.writelines((line.translate(visible) for line in lines) if is_terminal else lines)
        return 0
    kept = list(islice(rows, MAX_ROWS)) if form == "table" else list(rows)
    grid = (_align if form == "table" else _format_markdown)(names, numeric, kept)
    out.writelines(f"{line}\n" for line in grid)
    return sum(1 for _ in rows)


# For programs: every digit, every character.


def _format_csv(names: Sequence[str], rows: Iterable[Sequence[Any]], separator: str) -> Iterator[str]:
    """RFC 4180 with plain line feeds; NULL is an empty field, and an empty text a quoted one."""
    yield separator.join(map(_quote, names)) + "\n"
    for row in rows:
        line = separator.join("" if value is None else _format_field(value) for value in row)
        yield (line or '""') + "\n"  # an empty line would not be a row


def _format_field(value: Any) -> str:
    return str(value) if type(value) in (int, float) else _quote(format_exact(value))


def _quote(text: str) -> str:
    is_safe = text and text == text.strip() and not any(c in text for c in ',"\n\r\t')
    return text if is_safe else '"' + text.replace('"', '""') + '"'


def _format_json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """An array with one object per row, each on its own line."""
    keys = [f"{_format_json_text(name)}: " for name in names]
    separator = "[\n"
    for row in rows:
        yield separator + "{" + ", ".join(map(str.__add__, keys, map(_format_json_value, row))) + "}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


# Characters that control a terminal or the direction of text, and that json does not escape.
_CONTROLS = (*range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS}
_VISIBLE = {**{code: f"\\u{code:04x}" for code in range(0x20) if chr(code) != "\n"}, **_ESCAPES}


def _format_json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPES)


def _format_json_value(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null"  # JSON has no NaN and no infinity
    if isinstance(value, (bool, int, float, Decimal)):
        return format_exact(value)
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_format_json_text(str(key))}: {_format_json_value(inner)}" for key, inner in value.items())
            + "}"
        )
    if isinstance(value, list) or (isinstance(value, tuple) and len(value) == 2):  # an entry of a map
        return "[" + ", ".join(map(_format_json_value, value)) + "]"
    return _format_json_text(format_exact(value))


def format_exact(value: Any) -> str:
    """A value as text, without loss: times as ISO 8601, bytes in hex, lists and structs as JSON."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case Decimal():
            return format(value, "f")
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return _format_duration(0, value.days, value.seconds * 1_000_000 + value.microseconds)
        case bytes():
            return value.hex()
        case list() | dict():
            return _format_json_value(value)
        case (int(months), int(days), int(nanoseconds)):  # Arrow's form of an interval
            return _format_duration(months, days, nanoseconds // 1000)
    return str(value)


def _format_duration(months: int, days: int, microseconds: int) -> str:
    """Like DuckDB, `2 days 03:04:05`, with months kept as months."""
    sign, left = ("-" if microseconds < 0 else ""), abs(microseconds)
    seconds, fraction = divmod(left, 1_000_000)
    clock = f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    clock += f".{fraction:06}".rstrip("0") if fraction else ""
    parts = [f"{number} {unit}" for number, unit in ((months, "months"), (days, "days")) if number]
    return " ".join([*parts, clock] if microseconds or not parts else parts)


# For people: six digits, control characters escaped.


def _align(names: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    columns = [list(map(_shorten, column)) for column in _format_columns(names, rows)]
    for index, column in enumerate(columns):
        width = max(map(cell_len, column))
        columns[index] = [_pad(cell, width, numeric[index]) for cell in column]
    return ("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _shorten(cell: str) -> str:
    return cell if cell_len(cell) <= MAX_WIDTH else set_cell_size(cell, MAX_WIDTH - 1).rstrip() + "…"


def _pad(cell: str, width: int, align_right: bool) -> str:
    room = " " * (width - cell_len(cell))
    return room + cell if align_right else cell + room


def _format_markdown(names: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    columns = [list(map(markdown.escape, column)) for column in _format_columns(names, rows)]
    header, *lines = zip(*columns, strict=True)
    return iter(markdown.format_table(header, lines, numeric).split("\n"))


def _format_columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[list[str]]:
    """Each column as a list: its name, then its cells."""
    safe = lru_cache(10_000)(printable)  # it is slow, and most texts of a column repeat
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    for name, column in zip(names, columns, strict=True):
        number = _float_formatter(column)
        cells = (NULL if value is None else number(value) or safe(_format_value(value)) for value in column)
        yield [safe(name), *cells]


def _format_value(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds").removesuffix("+00:00")
    return format_exact(value)


def _float_formatter(column: Sequence[Any]) -> Callable[[Any], str]:
    """A function that formats the floats of a column, with as many decimals as the float that needs the most."""
    floats = [value for value in column if isinstance(value, float)]
    decimals = max(
        (len(_format_significant(value).partition(".")[2]) for value in floats if _is_common(value)), default=0
    )

    def format_float(value: Any) -> str:
        if not isinstance(value, float):
            return ""
        return f"{value:.{decimals}f}" if _is_common(value) else f"{value:.{_DIGITS}g}"

    return format_float


def _is_common(value: float) -> bool:
    """Whether a float is written without an exponent."""
    return math.isfinite(value) and (value == 0 or 1e-4 <= abs(value) < _EXACT)


def _format_significant(value: float) -> str:
    text = f"{value:.{_DIGITS}g}"
    return "" if "e" in text else text
