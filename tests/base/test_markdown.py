"""The Markdown writer: what a name or an error contains has no effect, and ordinary text stays readable."""

from __future__ import annotations

import pytest

from orchestrator.markdown import escape, format_table


@pytest.mark.parametrize(
    "text",
    [
        "resnet_32_20",
        "92.50 ± 0.10 (n=3)",
        "[92.1, 93.2]",
        "+0.25 [-0.1, +0.6], n=3",
        "−6.8 [−30.6, +17.0] (3)",
        "st temperature=2: x",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a&#124;b"),
        ("<b>&amp;", "&#60;b&#62;&#38;amp;"),
        ("[a](http://b)", "&#91;a&#93;(http&#58;//b)"),
        ("[1, 2](x)[3]", "&#91;1, 2&#93;(x)&#91;3&#93;"),
        ("_a_ b_c `d` *e*", "&#95;a&#95; b_c &#96;d&#96; &#42;e&#42;"),
        ("www.a.b  \n# c\x1b[2J", "www&#46;a.b &#35; c&#92;x1b&#91;2J"),
    ],
)
def test_what_markdown_would_obey_is_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    assert format_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert format_table(["a", "b"], [["x", "2"]], [False, True]) == "| a | b |\n| --- | ---: |\n| x | 2 |"
    assert format_table(["a"], []) == "| a |\n| --- |"
