"""Tables for people: as wide as their cells, or as the terminal, and nothing is lost where a cell wraps."""

from __future__ import annotations

import io
import os
import pty

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from orchestrator.columns import measure, table, width_of, wrap, wrapped

HEADER = ("trial_id", "setting", "student ← teacher", "state")
ROWS = [
    ("0123456789ab", "st lr=0.05 temperature=2", "resnet_32_8 ← resnet_32_20", "new"),
    ("ba9876543210", "学生 é", "resnet_32_8", "finished"),
]


def test_without_a_width_every_column_is_as_wide_as_its_widest_cell() -> None:
    assert table(HEADER, ROWS).splitlines() == [
        "trial_id      setting                   student ← teacher           state",
        "0123456789ab  st lr=0.05 temperature=2  resnet_32_8 ← resnet_32_20  new",
        "ba9876543210  学生 é                    resnet_32_8                 finished",
    ]


def test_columns_are_measured_in_cells_of_a_terminal() -> None:
    assert measure([["a", "中文"], ["bcd", ""]]) == [3, 4]


def test_a_cell_that_is_too_wide_wraps_within_its_column() -> None:
    assert table(HEADER, ROWS, 51).splitlines() == [
        "trial_id      setting        student ←     state",
        "                             teacher",
        "0123456789ab  st lr=0.05     resnet_32_8   new",
        "              temperature=2  ←",
        "                             resnet_32_20",
        "ba9876543210  学生 é         resnet_32_8   finished",
    ]


def test_where_columns_do_not_fit_a_row_is_a_block() -> None:
    assert table(HEADER, ROWS, 40).split("\n\n")[1].splitlines() == [
        "trial_id           ba9876543210", "setting            学生 é",
        "student ← teacher  resnet_32_8", "state              finished",
    ]  # fmt: skip


def test_a_long_path_is_broken_in_its_column() -> None:
    rows = [("bad", "/a/" + "b" * 60), ("ok", "fine")]
    assert [line[:9] for line in table(("verdict", "found"), rows, 40).splitlines()] == [
        "verdict  ", "bad      ", "         ", "         ", "ok       ",
    ]  # fmt: skip


CELLS = st.text("ab=_ 学é1.\u0301", max_size=30)


@settings(max_examples=200)
@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), min_size=1, max_size=4)), st.integers(5, 210)
)
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(rows: list[tuple[str, ...]], width: int) -> None:
    header = [f"h{number}" for number in range(len(rows[0]))]
    text = table(header, rows, width)
    assert max(map(cell_len, text.split("\n"))) <= width
    for letter in "ab=学é.":
        assert text.count(letter) == sum(cell.count(letter) for row in rows for cell in row)


@settings(max_examples=100)
@given(CELLS, st.integers(2, 40))
def test_wrapping_keeps_every_word(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split()) and max(map(cell_len, lines)) <= width


def test_a_paragraph_keeps_its_indent() -> None:
    assert wrapped("one\n  two three four", 11) == "one\n  two three\n  four"
    assert wrapped("as it is " * 50, None) == "as it is " * 50


def test_only_a_terminal_has_a_width() -> None:
    assert width_of(io.StringIO()) is None and width_of(None) is None
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        assert width_of(stream) is None  # it says 0 columns, as some do
        os.close(ours)
