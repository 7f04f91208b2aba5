"""The table of a paper as text: it fits the terminal, and its notes say what its marks mean."""

from __future__ import annotations

import re

import pytest
from reported import row, study
from test_paper_table import distilled, runs

from orchestrator.commands.shared import colours
from orchestrator.results.paper_table import build_paper_table
from orchestrator.results.paper_text import render_markdown, render_text, split_columns

BEST, CLOSE, WORSE = (90.0, 92.0, 94.0), (89.0, 92.5, 92.5), (85.0, 87.1, 88.9)
THREE = build_paper_table([*runs("base", *WORSE), *runs("logit", *CLOSE), *runs("st", *BEST)])
GOLDEN = """\
         best epoch        last epoch
dataset  Digits            Digits
teacher  ResNet20          ResNet20
student  ResNet8           ResNet8

teacher  -                 95.00 (1)
base     87.0 ± 2.0 (3)    87.0 ± 2.0 (3)
logit    91.3 ± 2.0 (3) ≈  91.3 ± 2.0 (3) ≈
st       92.0 ± 2.0 (3) *  92.0 ± 2.0 (3) *

Test accuracy in %: mean ± sample standard deviation (number of runs). The best epoch is picked on the test set, \
which is optimistic.
*: best of its column; ≈: not distinguishable from it (the 95 % interval of the paired difference over shared seeds \
contains 0); not corrected for the number of comparisons.
Settings: epochs = 10; batch_size = 32."""
PAIRS = build_paper_table(
    [
        row(no, method, 90.0 + no, student=f"resnet_32_{depth}", seed=seed)
        for no, (method, depth, seed) in enumerate(
            (m, d, s) for d in (8, 14, 20, 26, 32) for m in ("base", "st") for s in (0, 1)
        )
    ]
)


def test_marks_stand_next_to_cells_and_notes_explain_them() -> None:
    assert render_text(THREE, None) == GOLDEN
    bold = [line for line in render_markdown(THREE).splitlines() if "**" in line]
    assert bold == ["| st | **92.0 ± 2.0 (3)** | **92.0 ± 2.0 (3)** |"]
    assert "- bold: best of its column; ≈: not" in render_markdown(THREE)


def test_notes_name_only_marks_that_are_there() -> None:
    clear = render_text(build_paper_table([*runs("base", *WORSE), *runs("st", *BEST)]), None)
    assert "no mark: differs from it" in clear and "≈" not in clear and "?" not in clear
    mixed = build_paper_table([*runs("base", *WORSE), *runs("logit", 91.0), *runs("st", *BEST)])
    assert "91.00 (1) ?" in render_text(mixed, None) and "?: cannot be told" in render_text(mixed, None)
    single = render_text(build_paper_table([*runs("base", 90.0), *runs("st", 91.0)]), None)
    assert "90.00 (1) " in single and "?" not in single and "no difference can be told from chance" in single
    assert "best of" not in render_text(build_paper_table(runs("base", 90.0)), None)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_wide_studies_are_split_and_never_truncated(width: int) -> None:
    text = render_text(PAIRS, width)
    assert max(map(len, text.splitlines())) <= width
    cells = re.findall(r"\d+\.\d+ ± \d\.\d+ \(\d\)", " ".join(text.split()))
    assert len(cells) == 2 * 5 * 2 and "…" not in text and text.count("\nstudent") >= 2


def test_one_line_has_each_column_if_all_fit() -> None:
    assert render_text(PAIRS, None).count("\nstudent") == 1
    parts = split_columns(PAIRS, lambda keys: len(keys) <= 3)
    assert [len(part) for part in parts] == [3, 2, 3, 2], "no part has numbers of best and last epochs"
    even = split_columns(PAIRS, lambda keys: len(keys) <= 4)
    assert [len(part) for part in even] == [3, 2, 3, 2], "and not 4, 1, 4, 1"
    header = render_markdown(PAIRS).splitlines()[0]
    assert header.count("|") == 2 + 5 and "last epoch" not in header


def test_names_of_rows_wrap_where_the_terminal_is_narrow() -> None:
    swept = build_paper_table([*distilled(90.0, 91.0, ce_weight=0.5, temperature=2.0), *distilled(90.0, 91.0)])
    lines = render_text(swept, 44).splitlines()
    assert max(map(len, lines)) <= 44 and "st" in {line.split("  ")[0].split(" ")[0] for line in lines}


def test_settings_name_the_columns_with_another_value() -> None:
    others = [
        row(no, "st", 90.0, student=f"resnet_32_{depth}", lr=0.1, batch_size=size)
        for no, (depth, size) in enumerate([(8, 32), (14, 32), (20, 64)])
    ]
    text = render_text(build_paper_table(others), None)
    assert "lr" not in text.split("Settings: ")[1], "it is at its default"
    assert "Settings: epochs = 10; batch_size = 32" in text


def test_a_cut_table_says_so() -> None:
    rows = [*study(), *(each for no in range(9) for each in distilled(50.0 + no, temperature=no + 5.0))]
    assert "5 of 13 rows, those with the best last epoch; every other --format has all" in render_text(
        build_paper_table(rows).keep_best(5), None
    )


def test_the_best_is_bold_on_a_terminal() -> None:
    found = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", colours.states(GOLDEN))
    assert found == ["92.0 ± 2.0 (3)"] * 2
