"""The table of a paper in LaTeX: it compiles with booktabs alone, whatever a name contains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_paper_text import PAIRS, THREE

from orchestrator.results._latex import escape, render_latex

PDFLATEX = shutil.which("pdflatex")
ODD = "".join(map(chr, range(32, 0x180))) + "中文 −±←…–\u202e -- --- ?` !` '' \\\\ ^^41 \n%"
BLOCK = re.compile(r"\\begin\{tabular\}\{(l+)\}\n(.*?)\\end\{tabular\}", re.DOTALL)
DOCUMENT = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n%s\n\\end{document}\n"


def strange_table() -> str:
    """A table whose rows have names that LaTeX would take for its own."""
    rows = [
        replace(line, method=name)
        for line, name in zip(THREE.rows, ("*", "[3pt] \\input{x}", "a_b^c~$x$", ODD), strict=True)
    ]
    return render_latex(replace(THREE, rows=tuple(rows)), "odd")


def test_it_is_a_table_of_booktabs() -> None:
    text = render_latex(THREE, "results-digits")
    assert text.startswith("% \\usepackage{booktabs}\n\n\\begin{table}\n") and text.endswith("\n\\end{table}")
    ((layout, body),) = BLOCK.findall(text)
    assert layout == "lll" and re.findall(r"\\(top|mid|bottom)rule", body) == ["top", "mid", "mid", "bottom"]
    assert r" & \multicolumn{1}{c}{best epoch} & \multicolumn{1}{c}{last epoch} \\" in body
    assert r"teacher & -- & $95.00$ (1) \\" in body
    assert r"logit & $91.3 \pm 2.0$ (3)$^\dagger$ & " in body
    assert r"st & $\mathbf{92.0 \pm 2.0}$ \textbf{(3)} & " in body
    assert r"Test accuracy in \%: mean $\pm$ sample" in text and r"$^\dagger$: not distinguishable" in text
    assert "\\label{tab:results-digits}" in text


def test_every_line_has_as_many_cells_as_there_are_columns() -> None:
    text = render_latex(PAIRS, "x")
    blocks = BLOCK.findall(text)
    assert re.findall(r"\\label\{(.*?)\}", text) == ["tab:x", "tab:x-2", "tab:x-3", "tab:x-4"]
    assert [layout for layout, _ in blocks] == ["llll", "lll", "llll", "lll"], "five pairs do not fit side by side"
    for layout, body in blocks:
        lines = [line for line in body.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
        assert len(lines) == 3 + 3 and {line.count("&") for line in lines} == {len(layout) - 1}


@given(st.text())
def test_no_character_of_a_name_is_a_command(text: str) -> None:
    escaped = escape(text)
    left = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\$\^?\\\w+\$|\$-\$|\\dots\{\}|-\{\}|\{[*\[\]]\}", "", escaped)
    assert not set(left) & set("\\&%$#_{}^~`'<>|*[]") and "--" not in left and "\n" not in left
    assert all(char.isascii() or "\u00c0" <= char <= "\u00ff" for char in left)


@pytest.fixture
def compile_latex(tmp_path: Path) -> object:
    """Compiles a document, and returns the log."""
    if PDFLATEX is None:
        pytest.skip("there is no pdflatex here; install one (Debian: apt-get install texlive-latex-recommended)")
    environment = {**os.environ, "TEXMFVAR": str(tmp_path / "texmf"), "MKTEXPK": "0", "max_print_line": "1000"}

    def run(text: str) -> str:
        (tmp_path / "x.tex").write_text(DOCUMENT % text, encoding="utf-8")
        command = [PDFLATEX, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "x.tex"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
        log = (tmp_path / "x.log").read_text(encoding="utf-8", errors="replace")
        assert done.returncode == 0, log[-3000:]
        return log

    return run


@pytest.mark.parametrize(
    "text", [render_latex(THREE, "a"), render_latex(PAIRS, "b"), strange_table()], ids=["three", "pairs", "odd"]
)
def test_it_compiles(compile_latex: object, text: str) -> None:
    assert callable(compile_latex)
    log = compile_latex(text)
    assert "Missing character" not in log and "Float too large" not in log
