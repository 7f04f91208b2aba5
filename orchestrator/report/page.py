"""The report as one self-contained HTML file, or as Markdown with SVG files next to it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata, resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator import markdown
from orchestrator.errors import KdctlError
from orchestrator.files import write_file
from orchestrator.report._charts import Chart
from orchestrator.report._export import MARK, render_file, render_inline
from orchestrator.report._figures import Figure
from orchestrator.report._style import cut
from orchestrator.report.content import Facts
from orchestrator.report.sections import (
    Code,
    Section,
    Table,
    Text,
    build_sections,
    describe_incomplete,
    describe_progress,
)
from orchestrator.text import looking_once, masked, printable

# One of these is near the top of every file that kdctl report wrote; in a PDF the mark is anywhere.
_MARKS = tuple(
    text.encode() for text in (f"<!-- {MARK} -->", f'<meta name="generator" content="{MARK}">', f"tEXtSoftware\0{MARK}")
)
_PDF_MARK = f"/Creator ({MARK})".encode()
MAX_TEXT = 600  # characters of an external text
MAX_PARAGRAPH = 4_000  # of a paragraph, which is our own but for the names in it
MAX_CODE = 60_000  # of a study file


def render(facts: Facts, form: str, stem: str = "report") -> dict[str, str]:
    """The files of a report, name → text; the last one is the page itself. `form` is a `ReportFormat`.

    Raises StorageError where epochs cannot be read.
    """
    with looking_once():
        found = build_sections(facts)
        return _render_html(facts, found, stem) if form == "html" else _render_markdown(facts, found, stem)


def _format_text(text: str, limit: int = MAX_TEXT) -> str:
    return cut(" ".join(text.split()) if "\n" in text else text, limit)


def _format_paragraph(text: str) -> str:
    return _format_text(text, MAX_PARAGRAPH)


def _format_lines(text: str) -> str:
    """A file's text, made printable line by line."""
    text = masked(text)  # also the text as one: a secret may span several lines
    visible = "\n".join(printable(line.expandtabs(4)) for line in text[:MAX_CODE].splitlines())
    return visible + "\n… (cut)" if len(text) > MAX_CODE else visible


# HTML. The template escapes everything except what the filters here return as markup.


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": _format_text,
        "paragraph": _format_paragraph,
        "lines": _format_lines,
        "digest": _digest,
        "slug": _make_slug,
        "raw": Markup,
        "draw": _draw,
    }
    kinds = {"text_block": Text, "code_block": Code, "figure_block": Figure}
    environment.tests |= {name: _is_a(kind) for name, kind in kinds.items()}
    return environment


def _is_a(kind: type) -> Callable[[object], bool]:
    return lambda block: isinstance(block, kind)


def _draw(chart: Chart, name: str) -> Markup:
    return Markup(render_inline(chart, name))  # noqa: S704 - made by ElementTree, which escapes every text


def _digest(text: str) -> str:
    """The SHA-256 by which a Content-Security-Policy allows an inline script or style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _make_slug(title: str) -> str:
    """The anchor of a block: its title in letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"


def _read_template(name: str) -> str:
    return resources.files("orchestrator.report").joinpath("templates", name).read_text(encoding="utf-8")


def _render_html(facts: Facts, found: list[Section], stem: str) -> dict[str, str]:
    template = _environment().get_template("report.html")
    text = template.render(
        name=facts.name, head=describe_progress(facts), caution=describe_incomplete(facts), sections=found,
        style=_read_template("report.css"), script=_read_template("report.js"),
        version=_version(), written=f"{facts.now:%Y-%m-%d %H:%M}",
    )  # fmt: skip
    return {f"{stem}.html": text}


def _version() -> str:
    return metadata.version("kdctl")


# Markdown.


def _render_markdown(facts: Facts, found: list[Section], stem: str) -> dict[str, str]:
    files: dict[str, str] = {}
    parts = [f"<!-- {MARK} -->\n# {_escape(facts.name)}", _escape(describe_progress(facts))]
    parts += [f"> {_escape(describe_incomplete(facts))}"] if describe_incomplete(facts) else []
    for section in found:
        parts.append(f"## {section.title}")
        parts += [_render_block(block, stem, files) for block in section.blocks]
    parts.append(f"Written by kdctl {_version()} on {facts.now:%Y-%m-%d %H:%M} UTC.")
    return {**files, f"{stem}.md": "\n\n".join(parts) + "\n"}


def _escape(text: str) -> str:
    return markdown.escape(_format_text(text))


def _render_block(block: Text | Table | Figure | Code, stem: str, files: dict[str, str]) -> str:
    if isinstance(block, Text):
        return markdown.escape(_format_paragraph(block.text))
    if isinstance(block, Code):
        text = _format_lines(block.text)
        fence = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
        fence = fence if len(fence) >= 3 else "```"
        return f"### {_escape(block.title)}\n\n{fence}yaml\n{text}\n{fence}"
    if isinstance(block, Figure):
        return _render_figure(block, stem, files)
    rows = [[_render_cell(cell.text, cell.small, is_marked=cell.is_marked) for cell in row] for row in block.rows]
    table = markdown.format_table(list(map(_escape, block.header)), rows)
    body = "\n\n".join([table, *map(_escape, block.notes)])
    if block.folded:
        return f"<details><summary>{_escape(block.folded)}</summary>\n\n{body}\n\n</details>"
    return f"### {_escape(block.title)}\n\n{body}"


def _render_cell(text: str, small: str, *, is_marked: bool) -> str:
    body = f"**{_escape(text)}**" if is_marked else _escape(text)
    return f"{body} ({_escape(small)})" if small else body


def _render_figure(figure: Figure, stem: str, files: dict[str, str]) -> str:
    found = {f"{stem}-{name}.svg": chart for name, chart in figure.named_charts()}
    files.update({name: render_file(chart, "svg").decode() for name, chart in found.items()})
    images = " ".join(f"![{_escape(chart.texts.title)}](<{name}>)" for name, chart in found.items())
    return f"### {_escape(figure.title)}\n\n{images}\n\n{_escape(figure.caption)}"


# Files.


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes each file atomically; files of earlier reports are replaced.

    Raises KdctlError, before anything is written, if kdctl report did not write an existing file, and for a file that
    cannot be written.
    """
    for name in files:
        if not _is_ours(folder / name):
            raise KdctlError(
                f"{folder / name} exists and was not written by kdctl report; name another place with --output or "
                "--figures, or move this file"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_file(folder / name, text)
    except OSError as error:
        raise KdctlError(
            f"{folder} cannot be written ({error.strerror or error}); name another with --output or --figures"
        ) from None


def _is_ours(path: Path) -> bool:
    """Whether a file may be replaced: it does not exist, or has the mark of a report."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return any(mark in content[:400] for mark in _MARKS) or (content[:5] == b"%PDF-" and _PDF_MARK in content)
