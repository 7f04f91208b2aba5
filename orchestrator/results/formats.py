"""Rows of any kind as text: an aligned table for a terminal, Markdown, CSV and JSON."""

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

FORMATS = ("table", "markdown", "csv", "tsv", "json")
MAX_ROWS = 100  # that a table for a terminal shows
MAX_WIDTH = 120  # of its cells, in characters
NULL = "-"  # in tables and Markdown; nothing in CSV, null in JSON

_DIGITS = 6  # significant ones of a float, where a person reads it
_EXACT = 1e15  # from here on floats are sparser than whole numbers

Columns = Sequence[Sequence[Any]]  # the values of some rows, column by column


@dataclass(frozen=True, slots=True)
class Heading:
    """The columns of some rows: their names, each once, and which of them hold numbers."""

    names: Sequence[str]
    numeric: Sequence[bool]


def write(form: str, heading: Heading, batches: Iterable[Columns], out: TextIO, is_terminal: bool = False) -> int:
    """Writes rows, batch after batch, in one of `FORMATS`; no terminal obeys what they hold.

    Gives the number of rows that were left out, which only a table does.
    """
    rows = chain.from_iterable(zip(*batch, strict=True) for batch in batches)
    names, numeric = heading.names, heading.numeric
    if form in ("csv", "tsv", "json"):
        lines = _json(names, rows) if form == "json" else _csv(names, rows, "\t" if form == "tsv" else ",")
        visible = {**_VISIBLE, ord("\t"): "\t"} if form == "tsv" else _VISIBLE
        out.writelines((line.translate(visible) for line in lines) if is_terminal else lines)
        return 0
    shown = list(islice(rows, MAX_ROWS)) if form == "table" else list(rows)
    grid = (_aligned if form == "table" else _markdown)(names, numeric, shown)
    out.writelines(f"{line}\n" for line in grid)
    return sum(1 for _ in rows)


# For programs: every digit, every character.


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]], separator: str) -> Iterator[str]:
    """RFC 4180 with plain line feeds; NULL is an empty field, and an empty text a quoted one."""
    yield separator.join(map(_quoted, names)) + "\n"
    for row in rows:
        line = separator.join("" if value is None else _field(value) for value in row)
        yield (line or '""') + "\n"  # a line with nothing on it would be none


def _field(value: Any) -> str:
    return str(value) if type(value) in (int, float) else _quoted(exact(value))


def _quoted(text: str) -> str:
    is_safe = text and text == text.strip() and not any(c in text for c in ',"\n\r\t')
    return text if is_safe else '"' + text.replace('"', '""') + '"'


def _json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """An array with an object a row and a line."""
    keys = [f"{_json_text(name)}: " for name in names]
    separator = "[\n"
    for row in rows:
        yield separator + "{" + ", ".join(map(str.__add__, keys, map(_json_value, row))) + "}"
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


# What a terminal would obey, or turn around, and json leaves as it is.
_OBEYED = (*range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\u{code:04x}" for code in _OBEYED}
_VISIBLE = {**{code: f"\\u{code:04x}" for code in range(0x20) if chr(code) != "\n"}, **_ESCAPES}


def _json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPES)


def _json_value(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null"  # JSON has no other word for what is no number
    if isinstance(value, (bool, int, float, Decimal)):
        return exact(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_json_text(str(key))}: {_json_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list) or (isinstance(value, tuple) and len(value) == 2):  # an entry of a map
        return "[" + ", ".join(map(_json_value, value)) + "]"
    return _json_text(exact(value))


def exact(value: Any) -> str:
    """A value as text that says all of it: times as ISO 8601, bytes in hex, lists and structs as JSON."""
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
            return _duration(0, value.days, value.seconds * 1_000_000 + value.microseconds)
        case bytes():
            return value.hex()
        case list() | dict():
            return _json_value(value)
        case (int(months), int(days), int(nanoseconds)):  # how Arrow has an interval
            return _duration(months, days, nanoseconds // 1000)
    return str(value)


def _duration(months: int, days: int, microseconds: int) -> str:
    """As DuckDB shows it, `2 days 03:04:05`, months as months."""
    sign, left = ("-" if microseconds < 0 else ""), abs(microseconds)
    seconds, fraction = divmod(left, 1_000_000)
    clock = f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    clock += f".{fraction:06}".rstrip("0") if fraction else ""
    parts = [f"{number} {unit}" for number, unit in ((months, "months"), (days, "days")) if number]
    return " ".join([*parts, clock] if microseconds or not parts else parts)


# For people: six digits, nothing that a terminal obeys.


def _aligned(names: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    columns = [list(map(_shortened, column)) for column in _readable(names, rows)]
    for place, column in enumerate(columns):
        width = max(map(cell_len, column))
        columns[place] = [_padded(cell, width, numeric[place]) for cell in column]
    return ("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _shortened(cell: str) -> str:
    return cell if cell_len(cell) <= MAX_WIDTH else set_cell_size(cell, MAX_WIDTH - 1).rstrip() + "…"


def _padded(cell: str, width: int, to_the_right: bool) -> str:
    room = " " * (width - cell_len(cell))
    return room + cell if to_the_right else cell + room


def _markdown(names: Sequence[str], numeric: Sequence[bool], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    columns = [list(map(markdown.escape, column)) for column in _readable(names, rows)]
    header, *lines = zip(*columns, strict=True)
    return iter(markdown.format_table(header, lines, numeric).split("\n"))


def _readable(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[list[str]]:
    """Each column as its name and its cells."""
    safe = lru_cache(10_000)(printable)  # it takes a while, and most texts of a column are alike
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    for name, column in zip(names, columns, strict=True):
        number = _floats(column)
        cells = (NULL if value is None else number(value) or safe(_in_words(value)) for value in column)
        yield [safe(name), *cells]


def _in_words(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds").removesuffix("+00:00")
    return exact(value)


def _floats(column: Sequence[Any]) -> Callable[[Any], str]:
    """How to show the floats of a column: with as many decimals as the one that needs most of them."""
    floats = [value for value in column if isinstance(value, float)]
    decimals = max((len(_significant(value).partition(".")[2]) for value in floats if _is_common(value)), default=0)

    def shown(value: Any) -> str:
        if not isinstance(value, float):
            return ""
        return f"{value:.{decimals}f}" if _is_common(value) else f"{value:.{_DIGITS}g}"

    return shown


def _is_common(value: float) -> bool:
    """Whether it is written without an exponent."""
    return math.isfinite(value) and (value == 0 or 1e-4 <= abs(value) < _EXACT)


def _significant(value: float) -> str:
    text = f"{value:.{_DIGITS}g}"
    return "" if "e" in text else text
